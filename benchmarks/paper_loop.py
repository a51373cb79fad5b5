"""T-Patcher's published loop (Huang et al., ICLR 2023), written plainly, as the yardstick for
speed.

One patch neuron per wrong token in the last FFN of a GPT-2, a = relu(q·k + b), added through a
forward hook. Every step runs the full model forward over 8 copies of the example and back down to
the patch; the base is frozen. As in the published code the copies differ by the model's dropout, if
it has any, and the memory is held below the activation of each. Left out is the rest of that code's
work: joining the whole weight matrix anew in every call, writing all history after each edit. Uses
no code of the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GPT2LMHeadModel


@dataclass(frozen=True)
class PaperSettings:
    """The published settings for generation."""

    copies: int = 8
    alpha: float = 1.0
    memory_weight: float = 10.0  # m
    activation_top: int = 5
    memory_top: int = 1000
    beta: float = -3.0
    gamma: float = -3.0
    value_scale: float = 10.0
    learning_rate: float = 1e-2
    weight_decay: float = 0.01
    gradient_clip: float = 5.0
    steps_min: int = 100
    check_every: int = 25
    steps_max: int = 2000


@dataclass(frozen=True)
class EditTokens:
    """One edit as tokens: the input, the positions that predict the answer, and its tokens
    there."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[int, ...]


class PatchNeurons(nn.Module):
    """n neurons beside the last FFN, and their pre-activations in the latest forward pass."""

    def __init__(self, queries: Tensor, value_scale: float) -> None:
        """Start each neuron at an activation of 1 on its own row of `queries` [n, d]."""
        super().__init__()
        self.keys = nn.Parameter(queries / queries.square().sum(1, keepdim=True))
        self.bias = nn.Parameter(queries.new_zeros(len(queries)))
        self.values = nn.Parameter(torch.randn_like(queries))
        self.value_scale = value_scale
        self.scores = queries.new_empty(0)  # [B, T, n]

    def forward(self, queries: Tensor) -> Tensor:
        """Return the sum that the neurons add to the FFN's output for queries [B, T, d]."""
        self.scores = queries @ self.keys.T + self.bias
        return torch.relu(self.scores) @ (self.value_scale * self.values)


@dataclass(frozen=True)
class PaperEdit:
    """The result of an edit."""

    right: bool
    steps: int
    neurons: int


def edit(
    model: GPT2LMHeadModel, example: EditTokens, memory: Tensor, recipe: PaperSettings | None = None
) -> PaperEdit:
    """Make one edit, with the memory's queries [m, d] held silent; the model ends as it began."""
    recipe = recipe or PaperSettings()
    queries, wrong = _look(model, example)
    if not wrong:
        return PaperEdit(True, 0, 0)
    neurons = PatchNeurons(queries[wrong], recipe.value_scale)
    optimizer = torch.optim.Adam(
        neurons.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    places = [example.positions[i] for i in wrong]
    with _attached(model, neurons):
        for step in range(1, recipe.steps_max + 1):
            model.train()
            loss = _loss(model, neurons, example, places, memory, recipe)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(neurons.parameters(), recipe.gradient_clip)
            optimizer.step()
            model.eval()
            due = step >= recipe.steps_min and step % recipe.check_every == 0
            if due and _is_right(model, example):
                return PaperEdit(True, step, len(wrong))
    return PaperEdit(False, recipe.steps_max, len(wrong))


def _loss(
    model: GPT2LMHeadModel,
    neurons: PatchNeurons,
    example: EditTokens,
    places: Sequence[int],
    memory: Tensor,
    recipe: PaperSettings,
) -> Tensor:
    """Return l_e + alpha·l_a + m·(l_m1 + l_m2) (equations 5 to 9), by a forward pass over the
    copies."""
    ids = torch.tensor([example.ids] * recipe.copies, device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[:, list(example.positions)]
    targets = torch.tensor([example.targets] * recipe.copies, device=model.device)
    edited = cross_entropy(logits.flatten(0, 1), targets.flatten())
    own = neurons.scores[:, places, range(len(places))]  # [copies, n]
    memorised = memory @ neurons.keys.T + neurons.bias  # [m, n]
    below = memorised[:, None] - own + neurons.bias  # [m, copies, n]
    return (
        edited
        + recipe.alpha * _top(-own, recipe.activation_top)
        + recipe.memory_weight * _top(memorised - recipe.beta, recipe.memory_top)
        + recipe.memory_weight * _top(below - recipe.gamma, recipe.memory_top)
    )


def _top(scores: Tensor, count: int) -> Tensor:
    """Return S(v; n) = Avg[TopN(exp(v))]."""
    values = scores.flatten().exp()
    return values.topk(min(count, len(values))).values.mean()


def _look(model: GPT2LMHeadModel, example: EditTokens) -> tuple[Tensor, list[int]]:
    """Read the queries [answer, d] at the last FFN; return them and the answer's wrong tokens."""
    seen: list[Tensor] = []

    def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    handle = model.transformer.h[-1].mlp.register_forward_pre_hook(see)
    try:
        found = _answers(model, example)
    finally:
        handle.remove()
    wrong = [i for i, (a, b) in enumerate(zip(found, example.targets, strict=True)) if a != b]
    return seen[0][0, list(example.positions)], wrong


def _is_right(model: GPT2LMHeadModel, example: EditTokens) -> bool:
    return _answers(model, example) == list(example.targets)


@torch.no_grad()
def _answers(model: GPT2LMHeadModel, example: EditTokens) -> list[int]:
    ids = torch.tensor([example.ids], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits
    return logits[0, list(example.positions)].argmax(-1).tolist()


@contextmanager
def _attached(model: GPT2LMHeadModel, neurons: PatchNeurons) -> Iterator[None]:
    """Run the last FFN with the neurons while this lasts."""

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + neurons(inputs[0])

    handle = model.transformer.h[-1].mlp.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
