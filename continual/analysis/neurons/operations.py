"""Operations on neurons: suppressed or amplified at an answer's place, or in the weights.

- *At the place*, as published: the neuron's activation is multiplied at the position of the answer
  alone, in passes within `with`; no weight changes.
- *In the weights*: the neuron's value, its row of the output matrix, is multiplied, so that all
  positions of all texts feel it. It is a low-rank patch like every other: a unit row for each
  neuron times the change of its value.

Factor 0 suppresses, 2 amplifies. Leaves the choice of neurons to ``choosing``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor

from continual import hooks
from continual.analysis.neurons.choosing import FfnNeuron
from continual.analysis.neurons.gold import GoldToken
from continual.analysis.neurons.passes import PassMaker
from continual.model import EditedModel
from continual.passes.partial import logits_of
from continual.patches.low_rank import Factors, FfnLowRankPatch
from continual.storage import input_device

SUPPRESSED, AMPLIFIED = 0.0, 2.0


def probability(
    passes: PassMaker,
    answer: Sequence[GoldToken],
    neurons: Collection[FfnNeuron] = (),
    factor: float = 1.0,
) -> float:
    """Return P(answer), the mean over its tokens, with the neurons multiplied at each token's own
    place."""
    factors = _factors(neurons, factor, passes.anatomy.ffn_width)
    shares = [
        token_probabilities(passes, [gold], {b: f[None] for b, f in factors.items()})
        for gold in answer
    ]
    return float(torch.cat(shares).mean())


@torch.no_grad()
def token_probabilities(
    passes: PassMaker, golds: Sequence[GoldToken], factors: Mapping[int, Tensor]
) -> Tensor:
    """Return P(target) [B] of gold tokens whose texts have one length, with the rows of blocks
    multiplied by `factors` [B, d_ff] at each token's own place."""
    model = passes.model
    device = input_device(model)
    parts = [gold.inputs(device) for gold in golds]
    inputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    places = torch.tensor([gold.position for gold in golds], device=device)
    with rows_scaled(passes, factors, places):
        logits = logits_of(model, inputs)
    rows = torch.arange(len(golds), device=device)
    targets = torch.tensor([gold.target for gold in golds], device=device)
    return logits[rows, places].float().softmax(-1)[rows, targets]


@contextmanager
def rows_scaled(passes: PassMaker, factors: Mapping[int, Tensor], places: Tensor) -> Iterator[None]:
    """Multiply the FFN rows of blocks by `factors` [B, d_ff], at one position of each of the B
    texts of every batch that runs within `with`."""
    downs = {b: passes.anatomy.down_module(passes.model, b) for b in factors}
    with ExitStack() as stack:
        for block, factor in factors.items():
            scale = partial(_scaled, factor=factor, places=places)
            stack.enter_context(hooks.fed(downs[block], scale))
        yield


def _scaled(state: Tensor, factor: Tensor, places: Tensor) -> Tensor:
    rows = torch.arange(len(places), device=places.device)
    shape = state.shape
    state = state.reshape(len(rows), -1, shape[-1]).clone()
    state[rows, places] *= factor.to(state)
    return state.reshape(shape)


def _factors(neurons: Collection[FfnNeuron], factor: float, ffn_width: int) -> dict[int, Tensor]:
    """Return for each block of the neurons [d_ff]: `factor` at their places, one elsewhere."""
    factors: dict[int, Tensor] = {}
    for block, place in neurons:
        factors.setdefault(block, torch.ones(ffn_width))[place] = factor
    return factors


ValueChange = Callable[[Tensor], Tensor]
"""Values [n, d] of some neurons of a block → their changes [n, d]."""


def value_patch(
    edited: EditedModel,
    neurons: Collection[FfnNeuron],
    change: ValueChange,
) -> FfnLowRankPatch:
    """Return a patch that changes the values of neurons: for each block a column of L for each of
    its neurons, a unit vector, and the change of the value as its row of R."""
    by_block: dict[int, list[int]] = {}
    for block, place in sorted(neurons):
        by_block.setdefault(block, []).append(place)
    return FfnLowRankPatch.of(
        {
            block: _unit_factors(edited.weight(block).sum, places, change)
            for block, places in by_block.items()
        }
    )


def _unit_factors(matrix: Tensor, places: Sequence[int], change: ValueChange) -> Factors:
    left = torch.zeros(len(matrix), len(places))
    left[list(places), range(len(places))] = 1.0
    return Factors(left, change(matrix[list(places)].float().cpu()))


def scaled_values(
    edited: EditedModel, neurons: Collection[FfnNeuron], factor: float
) -> FfnLowRankPatch:
    """Return a patch that multiplies the values of neurons; factor 0 erases them: exactly zero."""
    return value_patch(edited, neurons, lambda values: (factor - 1) * values)


@contextmanager
def in_weights(edited: EditedModel, patches: Sequence[FfnLowRankPatch]) -> Iterator[None]:
    """Put patches of neurons' values on the model within `with`; afterwards its weights have the
    bits of before."""
    depth = edited.depth
    try:
        edited.put(patches)
        yield
    finally:
        edited.take_off(depth)
