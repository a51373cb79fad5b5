"""Makes neurons at any other place than the last FFN: blocks lie between a value and the answer.

A neuron there can open on any token, so it stays silent on all tokens of the memory, and its value
is trained by running the model with it: the forward pass is the model's own, with the value added
wherever the neuron opens in the edit's texts. Slots are trained one after another, each with the
earlier neurons of the edit in place, because in a decoder a value on one token reaches later ones.

The memory is read from the base: gates do not change the queries of their own place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from continual import hooks
from continual.editors.protected_tokens import ProtectedTokens
from continual.editors.tpatcher.competing import CompetingTokens
from continual.editors.tpatcher.config import TPatcherConfig
from continual.editors.tpatcher.losses import edit_loss
from continual.editors.tpatcher.plans import NeuronPlan
from continual.editors.tpatcher.training import NeuronParameters, train_values
from continual.effects.places import GatePlace
from continual.passes.partial import logits_of
from continual.patches.neuron import NeuronPatch, neurons_at
from continual.proposals import Edit, EditContext
from continual.site import Site
from continual.site.rows import Rows
from continual.site.tokens import token_queries
from continual.task_model import PASS_TOKENS_MAX, answer_logits
from continual.tasks import Encoding, Question
from continual.verdicts import verdict_of

AnswerPosition = tuple[Encoding, int]
"""A row: a text, and the number of the answer position."""


class Elsewhere:
    """The ground of a place that is not the last FFN; see `Ground`."""

    subject = ""
    retrains = False

    def __init__(
        self, edits: Sequence[Edit], context: EditContext, protected: ProtectedTokens
    ) -> None:
        self._site, self._protected = context.site, protected
        self._asked: list[AnswerPosition] = [
            (encoding, position)
            for edit in edits
            for encoding in edit.encodings
            for position in range(len(encoding.targets))
        ]
        self.edits = [self._standing_here(edit) for edit in edits]
        self.memory = protected.memory(context.known_answers())
        self._near = protected.near(edits)

    @property
    def place(self) -> GatePlace:
        """See `Ground.place`."""
        return self._protected.place

    @contextmanager
    def minded(self) -> Iterator[None]:
        """See `Ground.minded`: add the neighbours of the edits to the memory."""
        if not self._near:
            yield
            return
        with self.memory.beside(torch.cat(self._near)):
            yield

    def _standing_here(self, edit: Edit) -> Edit:
        rows, _ = self._read(edit.encodings)
        return replace(edit, rows=rows.split([len(e.targets) for e in edit.encodings]))

    def hidden(self) -> Tensor:
        """See `Ground.hidden`."""
        return torch.cat([rows.hidden for edit in self.edits for rows in edit.rows])

    @torch.no_grad()
    def _read(self, encodings: Sequence[Encoding]) -> tuple[Rows, Tensor]:
        """Read the rows of texts in one pass over them alone, and their logits [n, vocab]."""
        edited = self._site.edited
        landing = edited.anatomy.block(edited.model, self.place.value_block)
        texts = list(encodings)
        with edited.mount(self.place).shown() as queries, hooks.captured(landing) as calls:
            logits = logits_of(edited.model, self._site.inputs(texts))
        answers, targets = answer_logits(texts, logits)
        size = max(len(encoding.ids) for encoding in texts)
        places = [i * size + p for i, encoding in enumerate(texts) for p in encoding.positions]
        states = [s.reshape(-1, s.shape[-1])[places].float() for s in (queries[0], calls[0].hidden)]
        return Rows(states[0], states[1], targets, self._site.texts(texts)), answers

    def survey(self, rows: Rows, count: int) -> CompetingTokens:
        """See `Ground.survey`: by a pass of the model; all logits compete."""
        _, logits = self._read([encoding for edit in self.edits for encoding in edit.encodings])
        return CompetingTokens(rows.hidden, verdict_of(logits, rows.targets, self._site.tie), None)

    def answers(self, plan: NeuronPlan) -> Tensor:
        """See `Ground.answers`."""
        positions = [self._asked[rows[0]] for rows in plan.own]
        _, logits = self._read([encoding for encoding, _ in positions])
        starts = accumulate((len(e.targets) for e, _ in positions), initial=0)
        rows = [start + place for start, (_, place) in zip(starts, positions, strict=False)]
        return logits[rows].argmax(-1)

    def seen(self, encodings: Sequence[Encoding]) -> tuple[Rows, Tensor]:
        """See `Ground.seen`."""
        rows, logits = self._read(encodings)
        return rows, logits.argmax(-1)

    def train(
        self, plan: NeuronPlan, neurons: NeuronParameters, config: TPatcherConfig
    ) -> tuple[NeuronParameters, Tensor]:
        """See `Ground.train`: slot by slot, each with the earlier neurons on the model."""
        trained: list[NeuronParameters] = []
        edited = self._site.edited
        depth = edited.depth
        try:
            for slot in range(len(plan.own)):
                trained.append(self._trained(plan, neurons, slot, config))
                edited.put([self.patch(trained[-1], ())])
            done = self._tried(plan)
        finally:
            edited.take_off(depth)
        values = torch.cat([part.values for part in trained])
        return NeuronParameters(neurons.keys, neurons.bias, values), done

    def _trained(
        self, plan: NeuronPlan, neurons: NeuronParameters, slot: int, config: TPatcherConfig
    ) -> NeuronParameters:
        """Train the value of one slot's neuron."""
        only = torch.tensor([slot])
        slots, neuron = plan.value_slots[only], neurons[only]
        positions = [self._asked[row] for row in plan.own[slot]]
        positions += positions[:1] * (slots.real.shape[1] - len(positions))
        way = _SlotPass(
            self._site, self.place, positions, slots.hidden[0], self._openings(positions, neuron)
        )
        values, _ = train_values(slots, neuron, way, config)
        return values

    def _openings(self, asked: Sequence[AnswerPosition], neuron: NeuronParameters) -> list[Tensor]:
        """Return, for each row's text, the neuron's activation [T] on each token as a share of its
        activation on the row's own token."""
        texts = [encoding for encoding, _ in asked]
        queries = token_queries(self._site, texts, [self.place])[self.place]
        shares = []
        for text_queries, (encoding, position) in zip(queries, asked, strict=True):
            activations = torch.relu(text_queries @ neuron.keys[0] + neuron.bias[0])
            token = encoding.positions[position]
            at_row = activations[token].clone()
            shares.append(activations / at_row if at_row > 0 else torch.zeros_like(activations))
            shares[-1][token] = 1.0
        return shares

    def _tried(self, plan: NeuronPlan) -> Tensor:
        """Return a mask [slots]: all own rows of the slot are right on the model as it stands."""
        encodings = [encoding for edit in self.edits for encoding in edit.encodings]
        _, logits = self._read(encodings)
        right = (logits.argmax(-1) == plan.rows.targets).tolist()
        arrived = [all(right[row] for row in rows) for rows in plan.own]
        return torch.tensor(arrived, device=logits.device)

    def patch(self, neurons: NeuronParameters, owners: tuple[str, ...]) -> NeuronPatch:
        """See `Ground.patch`."""
        return neurons_at(self.place, neurons.keys, neurons.bias, neurons.values, owners)


@dataclass(frozen=True)
class _SlotPass:
    """The way from the states on which one slot's values land, [.., 1, r, d], to the logits of its
    rows. It is the model's own pass; the difference to the states `before` lands on every token
    where the neuron opens."""

    site: Site
    place: GatePlace
    asked: Sequence[AnswerPosition]  # [r]
    before: Tensor  # [r, d] the states without a value
    openings: Sequence[Tensor]  # [r] of [T]

    def __call__(self, hidden: Tensor) -> Tensor:
        """See `Descends`: logits [.., 1, r, vocab]."""
        added = (hidden - self.before).reshape(-1, hidden.shape[-1])  # [s · r, d]
        longest = max(len(encoding.ids) for encoding, _ in self.asked)
        size = max(1, PASS_TOKENS_MAX // longest)
        starts = range(0, len(added), size)
        parts = [self._logits(added[start : start + size], start) for start in starts]
        return torch.cat(parts).view(*hidden.shape[:-1], -1)

    def gradient(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """See `Descends.gradient`."""
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            losses = edit_loss(self(hidden), targets)
            (gradient,) = torch.autograd.grad(losses.sum(), hidden)
        assert isinstance(gradient, Tensor)
        return gradient

    def _logits(self, added: Tensor, first: int) -> Tensor:
        """Return logits [k, vocab] for differences [k, d] of the rows in turn, beginning with row
        number `first`."""
        numbers = [(first + i) % len(self.asked) for i in range(len(added))]
        rows = [_one(*self.asked[number]) for number in numbers]
        edited = self.site.edited
        shares = torch.nn.utils.rnn.pad_sequence(
            [self.openings[number] for number in numbers], batch_first=True
        )
        values = shares.unsqueeze(-1) * added.unsqueeze(1)  # [k, T, d]
        with hooks.altered(edited.mount(self.place).modules[1], _adding(values)):
            logits = logits_of(edited.model, self.site.inputs(rows))
        return answer_logits(rows, logits)[0]


def _adding(values: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda output: output + values.to(output).view(output.shape)


def _one(encoding: Encoding, position: int) -> Encoding:
    """Return one answer position of a probe as an encoding of its own, with the same tokens."""
    place, target = encoding.positions[position], encoding.targets[position]
    return Encoding(Question(encoding.ids, encoding.question.source), (place,), (target,))
