"""Records beside a model: edits kept as texts (SERAC, IKE); no weight is touched.

Knows all that a model remembers, in the order in which it came, and comes back to any earlier state
exactly. Leaves to `memory` which record an input is about, and how it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from continual.effects import Reach
from continual.errors import EditError
from continual.queries.growing import GrowingTensor


@dataclass(frozen=True)
class Record:
    """An edit as a text: what was asked, what is to be answered, about what."""

    id: str  # the request's
    prompt: str
    target: str
    subject: str | None = None


@dataclass(frozen=True)
class Records:
    """Records and their embeddings, one each: what a memory patch holds."""

    records: tuple[Record, ...]
    embeddings: Tensor  # [r, d] float32, of unit length

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True)
class Reading:
    """How an input that is about a record is answered: who reads it, and behind which words."""

    method: str  # serac or ike
    context: str  # stands in front of the input


class Change(Protocol):
    """Records that come, one reading each, and the ids of those that go before."""

    @property
    def records(self) -> Records:
        """Those that come."""

    @property
    def readings(self) -> tuple[Reading, ...]:
        """How each is read."""

    @property
    def scope(self) -> str:
        """The fingerprint of what made their embeddings."""

    @property
    def removed(self) -> tuple[str, ...]:
        """The ids of those that go."""


@dataclass(frozen=True)
class _Turn:
    """What a patch changed: enough to undo it."""

    first: int  # the place of its first record
    removed: tuple[int, ...]  # places


class MemoryBank:
    """All that a model remembers. Every record keeps its place, also when it is removed; growing
    costs what is added, going back what is cut off."""

    def __init__(self) -> None:
        self.records: list[Record] = []  # by place, removed ones too
        self.readings: list[Reading] = []
        self._scopes: list[str] = []
        self._embeddings: GrowingTensor | None = None  # their width comes with the first record
        self._active = GrowingTensor(torch.empty(0, dtype=torch.bool))
        self._places: dict[str, int] = {}  # of the active records, by id
        self._turns: list[_Turn] = []
        self._changes = 0

    def __len__(self) -> int:
        """How many records are active."""
        return len(self._places)

    def __contains__(self, identity: object) -> bool:
        """Whether a request has an active record."""
        return identity in self._places

    @property
    def size(self) -> int:
        """How many patches are on."""
        return len(self._turns)

    @property
    def state(self) -> int:
        """Another number whenever anything has come, gone or been taken back."""
        return self._changes

    @property
    def active(self) -> Tensor:
        """[places] bool."""
        return self._active.rows

    @property
    def embeddings(self) -> Tensor:
        """[places, d]"""
        return torch.empty(0, 0) if self._embeddings is None else self._embeddings.rows

    @property
    def scopes(self) -> set[str]:
        """The fingerprints of what made the active records' embeddings."""
        return {self._scopes[place] for place in self._places.values()}

    def places(self) -> list[int]:
        """Of the active records, in the order in which they came."""
        return list(self._places.values())

    def chosen(self, places: Sequence[int]) -> Records:
        """The records at some places."""
        return Records(tuple(self.records[i] for i in places), self.embeddings[list(places)])

    def extend(self, patch: Change) -> Tensor:
        """Take records away, and others in; returns the new embeddings as they now stand.

        A record takes the place of an earlier one of the same request. One that is to go and is not
        there is no error: what had put it there may have been reverted. Raises EditError for
        embeddings of another width.
        """
        self._require_width(patch)
        self._changes += 1
        going = (*patch.removed, *(record.id for record in patch.records.records))
        removed = tuple(self._places.pop(i) for i in going if i in self._places)
        if removed:
            self._active[torch.tensor(removed)] = False
        self._turns.append(_Turn(len(self.records), removed))
        return self._append(patch)

    def _append(self, patch: Change) -> Tensor:
        kept = patch.records
        if not len(kept):
            return kept.embeddings
        for place, record in enumerate(kept.records, start=len(self.records)):
            self._places[record.id] = place
        self.records += kept.records
        self.readings += patch.readings
        self._scopes += [patch.scope] * len(kept)
        self._active.append(torch.ones(len(kept), dtype=torch.bool))
        if self._embeddings is None:
            self._embeddings = GrowingTensor(kept.embeddings)
        return self._embeddings.append(kept.embeddings)

    def _require_width(self, patch: Change) -> None:
        width = self.embeddings.shape[1]
        if len(patch.records) and width not in (0, patch.records.embeddings.shape[1]):
            raise EditError(
                f"A memory patch has embeddings of {patch.records.embeddings.shape[1]} numbers, "
                f"the memory has {width}: another encoder made them."
            )

    def reach(self, first: int = 0) -> Reach:
        """See `Effect.reach`."""
        return Reach(records=self.size > first)

    def attached(self) -> AbstractContextManager[None]:
        """See `Effect.attached`: whoever answers looks records up."""
        return nullcontext()

    @property
    def is_in_parameters(self) -> bool:
        """See `Effect.is_in_parameters`: records stand beside them."""
        return not len(self)

    def silenced(self) -> AbstractContextManager[None]:
        """See `Effect.silenced`."""
        return nullcontext()

    def require_way_back(self, size: int) -> None:
        """See `Effect.require_way_back`: there is one to everywhere."""

    def settle(self) -> None:
        """See `Effect.settle`: nothing is let go."""

    def truncate(self, size: int) -> None:
        """Be as after the first `size` patches."""
        if size == self.size:
            return
        self._changes += 1
        while len(self._turns) > size:
            turn = self._turns.pop()
            del self.records[turn.first :], self.readings[turn.first :], self._scopes[turn.first :]
            self._active.truncate(turn.first)
            if self._embeddings is not None:
                self._embeddings.truncate(turn.first)
            if turn.removed:
                self._active[torch.tensor(turn.removed)] = True
        if not self.records:
            self._embeddings = None
        active = self._active.rows.nonzero().squeeze(-1).tolist()
        self._places = {self.records[place].id: place for place in active}
