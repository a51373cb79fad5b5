"""The last FFN as a place to edit: what a probe looks like there, and what is answered from there.

The query q and the residual sum h at the last FFN do not depend on any neuron there. A probe is
therefore kept as *rows*, one (q, h) per answer position, and its answer under any neurons is one
norm and one projection: logits = tail(h + relu(q·K + b)·V).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Self

import torch
from torch import Tensor

from continual.effects.gated import Firing, NeuronBank
from continual.model import EditedModel
from continual.passes.batching import by_length
from continual.passes.partial import RowTail, find_tail, logits_of
from continual.passes.site_pass import SitePass
from continual.patches.neuron import NeuronPatch
from continual.reading import RowTexts
from continual.tasks import Encoding, Task, sequences

PASS_TOKENS_MAX = 4096
PASS_LOGITS_MAX = 2**28  # of a pass that shows the logits of all tokens
LOGITS_MAX = 2**24
ROWS_REMEMBERED_MAX = 64
SUMS_REMEMBERED = 16
LOGITS_REMEMBERED_MAX = 2**22  # in all, if all are as many as the latest
TIE = 2.0**-13
"""Two logits nearer than this share of the row's largest may change places by float rounding."""
TIE_ROUNDINGS = 4
"""In half precision: so many roundings of the model's own number format, where that is more."""


@dataclass(frozen=True)
class Rows:
    """The answer positions of some probes, one after another, at the last FFN without neurons."""

    query: Tensor  # [n, d] float32
    hidden: Tensor  # [n, d] float32: residual + FFN output
    targets: Tensor  # [n] the token wanted
    texts: RowTexts | None = None  # [n] what was read up to there, where it is known

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Tensor | slice) -> Rows:
        texts = None if self.texts is None else self.texts.take(index)
        return Rows(self.query[index], self.hidden[index], self.targets[index], texts)

    def split(self, sizes: Sequence[int]) -> tuple[Rows, ...]:
        """Consecutive parts of these sizes."""
        if list(sizes) == [len(self)]:
            return (self,)
        ends = list(accumulate(sizes, initial=0))
        return tuple(self[slice(a, b)] for a, b in pairwise(ends))

    @classmethod
    def join(cls, rows: Iterable[Rows]) -> Self:
        """All of them, one after another."""
        every = list(rows)
        if len(every) == 1:
            return cls(every[0].query, every[0].hidden, every[0].targets, every[0].texts)
        return cls(
            torch.cat([r.query for r in every]),
            torch.cat([r.hidden for r in every]),
            torch.cat([r.targets for r in every]),
            RowTexts.join([r.texts for r in every]),
        )


@dataclass(frozen=True)
class Verdict:
    """What rows answer. `close` marks those that float rounding could turn."""

    right: Tensor  # [n] bool
    close: Tensor  # [n] bool


@dataclass(frozen=True)
class _Summed:
    """What was patched before: a gate, an editor, a proof and the ledger often ask the same, with
    few neurons more."""

    state: str  # the model's fingerprint
    neurons: int  # so many were on
    mark: float  # of the rows' residual sums
    rows: Rows
    firing: Firing
    patched: Tensor

    @property
    def name(self) -> tuple[str, int, int]:
        """What makes it the same sum, for the same rows: the state, the neurons, how many rows."""
        return self.state, self.neurons, len(self.rows)

    def begins_with(self, rows: Rows, mark: float) -> bool:
        """Whether these are the first of the rows, or all of them."""
        if mark != self.mark:
            return False
        own, count = self.rows, len(rows)
        if own.texts is not None and rows.texts is not None:
            same = list(rows.texts.prefixes) == list(own.texts.prefixes[:count])
        else:
            same = own.texts is rows.texts
        is_query = torch.equal(rows.query, own.query[:count])
        return same and is_query and torch.equal(rows.hidden, own.hidden[:count])


@dataclass(frozen=True)
class _Leading:
    """The highest logit of each row."""

    index: Tensor  # [n]
    close: Tensor  # [n] bool: float rounding could turn it

    @classmethod
    def of(cls, logits: Tensor, tie: float) -> _Leading:
        """Of logits [n, vocab]; `tie` as in `Site`."""
        best, index = logits.topk(2, dim=-1)
        largest = torch.maximum(best[:, 0].abs(), logits.amin(-1).abs())
        return cls(index[:, 0], best[:, 0] - best[:, 1] <= tie * largest)

    def verdict(self, targets: Tensor) -> Verdict:
        """On the first rows' targets."""
        rows = slice(len(targets))
        return Verdict(self.index[rows] == targets, self.close[rows])


@dataclass(frozen=True)
class _Asked:
    """What was answered before, likewise."""

    state: str  # of the parameters: the head and the norm may be edited, too
    mark: float
    hidden: Tensor
    logits: Tensor
    tie: float

    @cached_property
    def leading(self) -> _Leading:
        """What leads in each row."""
        return _Leading.of(self.logits, self.tie)

    def answers(self, state: str, hidden: Tensor, mark: float) -> bool:
        """Whether these are its logits."""
        return mark == self.mark and state == self.state and torch.equal(hidden, self.hidden)


def _mark(rows: Tensor) -> float:
    """A number that tells most rows [n, d] apart, before they are compared whole."""
    return float(rows[0, 0]) if len(rows) else 0.0


class Site:
    """The last FFN of an edited model, for one task. Used within the model's `with` block."""

    def __init__(self, edited: EditedModel, task: Task) -> None:
        self.edited = edited
        self.task = task
        self.tail: RowTail = find_tail(edited.model, edited.anatomy)
        self._pass = SitePass(edited.model, edited.anatomy)
        self._summed: list[_Summed] = []  # the latest first
        self._asked: list[_Asked] = []  # likewise

    @cached_property
    def dtype(self) -> torch.dtype:
        """The number format of the model's parameters."""
        found: torch.dtype = next(self.edited.model.parameters()).dtype
        return found

    @cached_property
    def tie(self) -> float:
        """The share of a row's largest logit by which two logits are close; see `TIE`."""
        return max(TIE, TIE_ROUNDINGS * torch.finfo(self.dtype).eps)

    @cached_property
    def choices(self) -> int:
        """How many logits a row has: tokens, or labels."""
        width = torch.zeros(1, self.edited.anatomy.width, device=self.edited.device)
        return self.logits(width).shape[-1]

    @property
    def block(self) -> int:
        """The block whose FFN this is."""
        return self.edited.anatomy.last

    @property
    def bank(self) -> NeuronBank:
        """The neurons here."""
        return self.edited.bank(self.block)

    # -- rows

    def rows(self, encodings: Sequence[Encoding]) -> Rows:
        """The rows of these probes, in one forward pass over them alone.

        The same probes in the same order give the same bits.
        """
        edited = self.edited
        with edited.without_neurons(self.block):
            inputs = self.inputs(encodings)
            read, owners = sequences(encodings)
            size = max(len(encoding.ids) for encoding in read)
            places = [
                i * size + p for i, e in zip(owners, encodings, strict=True) for p in e.positions
            ]
            device = inputs["input_ids"].device
            query, hidden = self._pass(inputs, torch.tensor(places, device=device))
        targets = [target for encoding in encodings for target in encoding.targets]
        rows = (query.clone().float(), hidden.clone().float())  # such as autograd can use
        return Rows(*rows, torch.tensor(targets, device=device), self.texts(encodings))

    def texts(self, encodings: Sequence[Encoding]) -> RowTexts:
        """What was read up to the rows of these probes."""
        read = [(e.ids, place + 1) for e in encodings for place in e.positions]
        return RowTexts(self.edited.decode, read)

    def rows_in_passes(self, encodings: Sequence[Encoding]) -> Rows:
        """The rows of many probes: passes of nearly one length, rows in the probes' order."""
        found: dict[int, Rows] = {}
        for batch in length_sorted(encodings):
            rows = self.rows([encodings[i] for i in batch])
            sizes = [len(encodings[i].targets) for i in batch]
            for i, part in zip(batch, rows.split(sizes), strict=True):
                found[i] = part
        return Rows.join(found[i] for i in range(len(encodings)))

    # -- answers

    def patched(self, rows: Rows) -> Tensor:
        """h [n, d] with what the neurons add to it."""
        if len(rows) > ROWS_REMEMBERED_MAX:
            return self._with_neurons(rows)
        state, size, mark = self.edited.fingerprint, self.bank.size, _mark(rows.hidden)
        known = next((summed for summed in self._summed if summed.begins_with(rows, mark)), None)
        if known is not None and known.name == (state, size, len(rows)):
            return known.patched
        firing = self._firing(rows, known)
        hidden = rows.hidden + self.bank.summed(firing) if len(firing) else rows.hidden
        others = [s for s in self._summed if s is not known or len(s.rows) > len(rows)]
        self._summed = [_Summed(state, size, mark, rows, firing, hidden), *others]
        del self._summed[SUMS_REMEMBERED:]
        return hidden

    def patched_with(self, rows: Rows, patch: NeuronPatch) -> Tensor:
        """h [n, d] as it will be, to the bit, when this patch is put on next."""
        mark = _mark(rows.hidden)
        known = next((summed for summed in self._summed if summed.begins_with(rows, mark)), None)
        firing = self._firing(rows, known)
        more = patch.firing(rows.query, rows.texts)
        if not len(more):
            return rows.hidden + self.bank.summed(firing) if len(firing) else rows.hidden
        activations = torch.cat([firing.activations, more.activations], 1)
        values = torch.cat([self.bank.values[firing.places], patch.values[more.places]])
        return rows.hidden + activations @ values

    def _firing(self, rows: Rows, known: _Summed | None) -> Firing:
        """The neurons that fire on a few rows; only those that came since they were known."""
        bank = self.bank
        if known is None or not self.edited.has_passed(known.state, self.block, known.neurons):
            return bank.firing(rows.query, texts=rows.texts)
        before = known.firing.of_first(len(rows))
        return before.followed_by(bank.firing(rows.query, known.neurons, rows.texts))

    def _with_neurons(self, rows: Rows) -> Tensor:
        extra = self.bank.contribution(rows.query, rows.texts)
        return rows.hidden if extra is None else rows.hidden + extra

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits [n, vocab] of residual sums [n, d], in float32."""
        if hidden.requires_grad or len(hidden) > ROWS_REMEMBERED_MAX:
            return self._logits(hidden)
        return self._answered(hidden).logits

    def verdict(self, hidden: Tensor, targets: Tensor) -> Verdict:
        """The verdict of residual sums [n, d] on targets: those of the first rows, or of all."""
        if len(hidden) > ROWS_REMEMBERED_MAX:
            return verdict_of(self._logits(hidden), targets, self.tie)
        return self._answered(hidden).leading.verdict(targets)

    def _answered(self, hidden: Tensor) -> _Asked:
        """What a few rows answer: remembered, or found."""
        state, mark = self.edited.rows_state, _mark(hidden)
        known = next((asked for asked in self._asked if asked.answers(state, hidden, mark)), None)
        if known is None:
            known = _Asked(state, mark, hidden, self._logits(hidden), self.tie)
            few = min(SUMS_REMEMBERED, LOGITS_REMEMBERED_MAX // (1 + known.logits.numel()))
            self._asked = [known, *self._asked[:few]]
        return known

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.tail(hidden.to(self.dtype)).float()

    @torch.no_grad()
    def judge(self, rows: Rows) -> Verdict:
        """Which rows have their target as the arg-max, with the neurons that are on."""
        hidden = self.patched(rows)
        size = max(1, LOGITS_MAX // self.choices)
        parts = [
            self.verdict(hidden[i : i + size], rows.targets[i : i + size])
            for i in range(0, len(rows), size)
        ]
        return Verdict(
            torch.cat([part.right for part in parts]), torch.cat([part.close for part in parts])
        )

    def is_right(self, encoding: Encoding, rows: Rows) -> bool:
        """Whether a probe is right, from the first of these rows, which are its own."""
        with torch.no_grad():  # of all rows at once: an editor will ask for all of them
            verdict = self.verdict(self.patched(rows), rows.targets[: len(encoding.targets)])
        if bool(verdict.close.any()):
            return self.judge_alone(encoding)
        return bool(verdict.right.all())

    def are_right(
        self, encodings: Sequence[Encoding], rows: Rows, chosen: Sequence[int]
    ) -> list[bool]:
        """Whether these of some probes are right, from the rows of all, one probe's after
        another's: the ledger will ask for all of them."""
        if not chosen:
            return []
        sizes = [len(encoding.targets) for encoding in encodings]
        verdict = self.judge(rows)
        right, close = verdict.right.split(sizes), verdict.close.split(sizes)
        return [
            self.judge_alone(encodings[i]) if bool(close[i].any()) else bool(right[i].all())
            for i in chosen
        ]

    @torch.no_grad()
    def judge_in_full(self, encodings: Sequence[Encoding], model: Any = None) -> list[bool]:
        """Which probes are right, by forward passes of the whole edited model, or another one."""
        outcomes: dict[int, bool] = {}
        tokens_max = min(PASS_TOKENS_MAX, max(1, PASS_LOGITS_MAX // self.choices))
        for batch in length_sorted(encodings, tokens_max):
            chosen = [encodings[i] for i in batch]
            logits = logits_of(model or self.edited.model, self.inputs(chosen))
            answered, targets = answer_logits(chosen, logits)
            verdict = verdict_of(answered, targets, self.tie)
            sizes = [len(encoding.targets) for encoding in chosen]
            for i, right, close in zip(
                batch, verdict.right.split(sizes), verdict.close.split(sizes), strict=True
            ):
                is_close = bool(close.any())
                outcomes[i] = (
                    self.judge_alone(encodings[i], model) if is_close else bool(right.all())
                )
        return [outcomes[i] for i in range(len(encodings))]

    @torch.no_grad()
    def judge_alone(self, encoding: Encoding, model: Any = None) -> bool:
        """Whether one probe is right, by a pass over it alone: what decides a close one."""
        logits = logits_of(model or self.edited.model, self.inputs([encoding]))
        answered, wanted = answer_logits([encoding], logits)
        return bool((answered.argmax(-1) == wanted).all())

    @torch.no_grad()
    def greedily(self, encoding: Encoding, model: Any = None) -> tuple[int, ...]:
        """What the model says in the place of a probe's targets, without a stop; or another
        model."""
        said: tuple[int, ...] = ()
        for position in encoding.positions:
            asked = Encoding(encoding.question, (position,), (*said, encoding.targets[-1]))
            logits = logits_of(model or self.edited.model, self.inputs([asked]))
            answered, _ = answer_logits([asked], logits)
            said = (*said, int(answered[0].argmax()))
        return said

    def inputs(self, encodings: Sequence[Encoding]) -> dict[str, Tensor]:
        """The model's inputs for a pass over these probes, on its device."""
        inputs = self.task.inputs(sequences(encodings)[0])
        return {name: tensor.to(self.edited.device) for name, tensor in inputs.items()}


def answer_rows(encodings: Sequence[Encoding], query: Tensor, hidden: Tensor) -> Rows:
    """The answer positions of a pass: query and residual sum [B, T, d] of its probes."""
    sequence, position = _places(encodings, hidden.device)
    targets = [target for encoding in encodings for target in encoding.targets]
    return Rows(
        query[sequence, position].float(),
        hidden[sequence, position].float(),
        torch.tensor(targets, device=hidden.device),
    )


def answer_logits(encodings: Sequence[Encoding], logits: Tensor) -> tuple[Tensor, Tensor]:
    """The answer positions of a pass with logits [B, T, vocab], or [B, labels] where there is one
    answer for a whole input: [n, vocab or labels] float32, and the tokens wanted there [n]."""
    targets = torch.tensor([t for e in encodings for t in e.targets], device=logits.device)
    if logits.ndim == 2:
        return logits.float(), targets
    sequence, position = _places(encodings, logits.device)
    return logits[sequence, position].float(), targets


def verdict_of(logits: Tensor, targets: Tensor, tie: float) -> Verdict:
    """The verdict of logits [n, vocab] on targets [n]; `tie` as in `Site`."""
    return _Leading.of(logits, tie).verdict(targets)


def length_sorted(
    encodings: Sequence[Encoding], tokens_max: int = PASS_TOKENS_MAX
) -> list[list[int]]:
    """Indices in batches of nearly one length, each of at most `tokens_max` padded tokens; the
    beginnings of one text stay together."""
    read, owners = sequences(encodings)
    members: list[list[int]] = [[] for _ in read]
    for index, owner in enumerate(owners):
        members[owner].append(index)
    batches = by_length([len(encoding) for encoding in read], tokens_max)
    return [[index for owner in batch for index in members[owner]] for batch in batches]


def _places(encodings: Sequence[Encoding], device: torch.device) -> tuple[Tensor, Tensor]:
    """(sequence, position) of every answer row in the batch."""
    _, owners = sequences(encodings)
    places = [(i, p) for i, e in zip(owners, encodings, strict=True) for p in e.positions]
    sequence, position = torch.tensor(places, device=device).T
    return sequence, position
