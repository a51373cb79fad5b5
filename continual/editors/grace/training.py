"""The values of an edit, trained from recorded passes over its texts: only blocks above the layer
run.

The output of the layer at a token enters the residual sum of its block there. So a pass over the
texts is recorded once, and a step of Adam takes the recorded sums, with the values in the place of
the layer's own output, through the blocks above. The loss is the mean NLL of the answers' tokens.
Knows one layer and texts; leaves to the editor the choice of the values to train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from continual import hooks
from continual.editors.grace.config import GraceConfig
from continual.effects.places import GatePlace
from continual.passes.partial import logits_of
from continual.passes.suffix import EndPass, Ends, PackedEnds, WholeSequences
from continual.site import Site
from continual.tasks import Encoding

PADDED_MAX = 1.6  # in attention, see `PackedEnds`


@dataclass(frozen=True)
class Keyed:
    """A text, and the tokens [r] of it at which the layer's output is replaced."""

    text: Encoding
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class TrainedValues:
    """The values, with the steps and the loss of their training."""

    values: Tensor  # [n, d] float32
    steps: int
    loss: float
    is_right: bool  # every token of every answer is the likeliest one


class KeyedPass:
    """A recorded pass over texts, on the model as it stands, that runs again from the layer on; it
    has a row for each keyed token, text after text."""

    keys: Tensor  # [n, d] float32, the layer's query in each row
    outputs: Tensor  # [n, d] float32, the layer's output there, as it is now

    def __init__(self, site: Site, block: int, texts: Sequence[Keyed], packs: bool) -> None:
        """`packs`: see `suffix.keeps_prefixes`."""
        self._site, self._block, self._texts = site, block, texts
        self._starts = [min(keyed.tokens) if packs else 0 for keyed in texts]
        read = [self._read(keyed) for keyed in texts]  # alone: a key depends on nothing else
        self.keys = torch.cat([keys for keys, _ in read])
        self.outputs = torch.cat([outputs for _, outputs in read])
        with torch.no_grad():
            self._run = self._recorded(packs)
        self._rows = self._places([keyed.tokens for keyed in texts])
        self._answers = self._places([keyed.text.positions for keyed in texts])
        targets = [target for keyed in texts for target in keyed.text.targets]
        self._targets = torch.tensor(targets, device=site.edited.device)

    def _read(self, one: Keyed) -> tuple[Tensor, Tensor]:
        edited = self._site.edited
        down = edited.anatomy.down_module(edited.model, self._block)
        mount = edited.mount(GatePlace.at(self._block))
        with torch.no_grad(), mount.shown() as queries, hooks.captured(down) as calls:
            logits_of(edited.model, self._site.inputs([one.text]))
        width, rows = edited.anatomy.width, list(one.tokens)
        shown = (queries[0], calls[0].hidden)
        keys, outputs = (states.reshape(-1, width)[rows].float() for states in shown)
        return keys, outputs

    def _recorded(self, packs: bool) -> EndPass:
        edited = self._site.edited
        ids = tuple(keyed.text.ids for keyed in self._texts)
        if packs:
            ends = Ends(ids, tuple(self._starts))
            return PackedEnds(edited.model, edited.anatomy, ends, self._block, PADDED_MAX)
        pad = edited.base.pad
        return WholeSequences(edited.model, edited.anatomy, ids, self._block, pad)

    def _places(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Return the rows of the recorded pass for tokens of each text."""
        places = [
            (i, p - self._starts[i]) for i, text_tokens in enumerate(tokens) for p in text_tokens
        ]
        sequences, positions = torch.tensor(places, device=self._site.edited.device).T
        return self._run.row(sequences, positions)

    def logits(self, values: Tensor) -> Tensor:
        """Return the logits [answer tokens, vocab] with values [n, d] in the rows, differentiable
        in the values."""
        sums = self._run.sums
        moved = sums.index_add(0, self._rows, (values - self.outputs).to(sums.dtype))
        return self._site.logits(self._run.answers(moved, self._answers))

    def loss(self, values: Tensor) -> tuple[Tensor, bool]:
        """Return the mean NLL of the answers' tokens, and true if all of them are the likeliest."""
        logits = self.logits(values)
        is_right = bool((logits.argmax(1) == self._targets).all())
        return functional.cross_entropy(logits, self._targets), is_right


def train(
    texts: KeyedPass,
    given: dict[int, Tensor],
    config: GraceConfig,
    generator: torch.Generator,
) -> TrainedValues:
    """Run Adam on the values of all rows except the `given` values [d], by row. Stops once every
    answer is right and the loss is small enough."""
    outputs = texts.outputs
    fixed = outputs.clone()
    for row, value in given.items():
        fixed[row] = value
    rows = torch.tensor([row for row in range(len(outputs)) if row not in given], dtype=torch.long)
    rows = rows.to(outputs.device)
    start = (
        outputs
        if config.start == "warm"
        else torch.rand(outputs.shape, generator=generator).to(outputs)
    )
    free = start[rows].clone().requires_grad_()
    adam = torch.optim.Adam([free], lr=config.rate * float(outputs.square().mean().sqrt()))
    steps = 0
    while True:
        values = fixed.index_put((rows,), free)
        loss, is_right = texts.loss(values)
        arrived = is_right and float(loss.detach()) < config.loss_max
        if arrived or steps == config.steps_max or not len(rows):
            return TrainedValues(values.detach(), steps, float(loss.detach()), is_right)
        adam.zero_grad()
        loss.backward()
        adam.step()
        steps += 1
