"""Sums and answers of a few rows, remembered: a gate, an editor, a proof and the ledger often ask
for the same ones.

Sums are remembered with the neurons that fire, so that only later neurons are evaluated. Knows how
long a remembered value holds; leaves the choice of rows worth remembering to `Site`, and computing
to the model. The same bits come out, remembered or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from continual.effects.gated import Firing, NeuronBank
from continual.model import EditedModel
from continual.patches.neuron import NeuronPatch
from continual.site.rows import Rows
from continual.verdicts import Leading

SUMS_REMEMBERED = 16
ANSWERS_REMEMBERED = 16
LOGITS_REMEMBERED_MAX = 2**22  # in all, if all are as many as the latest


@dataclass(frozen=True)
class _FiringSum:
    """Rows with the neurons that fire on them, at one state of the model."""

    state: str  # the model's fingerprint
    neurons: int  # the number on the model
    mark: float  # of the rows' residual sums, see `_mark`
    rows: Rows
    firing: Firing
    patched: Tensor

    @property
    def name(self) -> tuple[str, int, int]:
        """State, number of neurons and number of rows: sums of the same rows are the same if these
        are."""
        return self.state, self.neurons, len(self.rows)


class PatchedSums:
    """Residual sums of a few rows with the neurons at the last place, the latest remembered."""

    def __init__(self, edited: EditedModel) -> None:
        self._edited = edited
        self._sums: list[_FiringSum] = []  # the latest first

    def of(self, rows: Rows) -> Tensor:
        """Return h [n, d] with the neurons' sum added."""
        state, size, mark = self._edited.fingerprint, self._bank.size, _mark(rows.hidden)
        known_sum = self._known(rows, mark)
        if known_sum is not None and known_sum.name == (state, size, len(rows)):
            return known_sum.patched
        firing = self._firing(rows, known_sum)
        patched = self._summed(rows, firing)
        other_sums = [s for s in self._sums if s is not known_sum or len(s.rows) > len(rows)]
        self._sums = [_FiringSum(state, size, mark, rows, firing, patched), *other_sums]
        del self._sums[SUMS_REMEMBERED:]
        return patched

    def with_next(self, rows: Rows, patch: NeuronPatch) -> Tensor:
        """Return h [n, d] as it will be, to the bit, if this patch is put on next."""
        firing = self._firing(rows, self._known(rows, _mark(rows.hidden)))
        more = patch.firing(rows.query, rows.texts)
        if not len(more):
            return self._summed(rows, firing)
        activations = torch.cat([firing.activations, more.activations], 1)
        values = torch.cat([self._bank.values[firing.places], patch.values[more.places]])
        return rows.hidden + activations @ values

    @property
    def _bank(self) -> NeuronBank:
        return self._edited.site_bank

    def _known(self, rows: Rows, mark: float) -> _FiringSum | None:
        """Return the latest sum whose rows begin with these; None if there is none."""
        return next((s for s in self._sums if s.mark == mark and s.rows.begin_with(rows)), None)

    def _firing(self, rows: Rows, known: _FiringSum | None) -> Firing:
        """Return the neurons that fire on a few rows; evaluates only neurons later than the `known`
        sum's."""
        bank = self._bank
        if known is None or not self._edited.has_passed(known.state, known.neurons):
            return bank.firing(rows.query, texts=rows.texts)
        before = known.firing.of_first(len(rows))
        return before.followed_by(bank.firing(rows.query, known.neurons, rows.texts))

    def _summed(self, rows: Rows, firing: Firing) -> Tensor:
        return rows.hidden + self._bank.summed(firing) if len(firing) else rows.hidden


@dataclass(frozen=True)
class StoredLogits:
    """The logits of a few residual sums, at one state of the parameters."""

    state: str  # the head and the norm may be edited, too
    mark: float
    hidden: Tensor  # [n, d]
    logits: Tensor  # [n, vocab] float32
    tie: float

    @cached_property
    def leading(self) -> Leading:
        """The highest logit of each row."""
        return Leading.of(self.logits, self.tie)

    def is_of(self, state: str, hidden: Tensor, mark: float) -> bool:
        """Tell whether the answer is for this state and these residual sums."""
        return mark == self.mark and state == self.state and torch.equal(hidden, self.hidden)


class RowAnswers:
    """The answers of a few rows, the latest remembered."""

    def __init__(self, edited: EditedModel, logits: Callable[[Tensor], Tensor], tie: float) -> None:
        """`logits` computes the logits of residual sums [n, d]; `tie` as in `verdicts.tie_of`."""
        self._edited, self._logits, self._tie = edited, logits, tie
        self._answers: list[StoredLogits] = []  # the latest first

    def of(self, hidden: Tensor) -> StoredLogits:
        """Return the answer of residual sums [n, d], remembered or computed."""
        state, mark = self._edited.rows_state, _mark(hidden)
        known_logits = next((a for a in self._answers if a.is_of(state, hidden, mark)), None)
        if known_logits is None:
            known_logits = StoredLogits(state, mark, hidden, self._logits(hidden), self._tie)
            few = min(
                ANSWERS_REMEMBERED, LOGITS_REMEMBERED_MAX // (1 + known_logits.logits.numel())
            )
            self._answers = [known_logits, *self._answers[:few]]
        return known_logits


def _mark(rows: Tensor) -> float:
    """Return a number that tells most rows [n, d] apart, before they are compared whole."""
    return float(rows[0, 0]) if len(rows) else 0.0
