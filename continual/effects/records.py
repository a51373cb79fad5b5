"""Records beside a model: edits kept as texts (SERAC, IKE); no weight is touched.

Knows all records of a model, in the order in which they came, and goes back to any earlier state
exactly. Leaves the choice of a record for an input, and its reading, to `memory`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from continual.effects import MEMORY, Reach
from continual.errors import EditError
from continual.queries.growing import GrowingTensor


@dataclass(frozen=True)
class Record:
    """An edit as a text: its prompt, target and subject."""

    id: str  # the request's
    prompt: str
    target: str
    subject: str | None = None
    score_min: float = 0.0
    """The least score of an input that it is about, where that is more than the scope's own."""


@dataclass(frozen=True)
class EmbeddedRecords:
    """The records of a memory patch, with an embedding each."""

    records: tuple[Record, ...]
    embeddings: Tensor  # [r, d] float32, of unit length

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True)
class Reading:
    """The way to answer an input that is about a record: who reads it, and behind which words."""

    method: str  # serac or ike
    context: str  # stands in front of the input


class RecordChange(Protocol):
    """The new records of a patch, one reading each, and the ids of records to remove first."""

    @property
    def records(self) -> EmbeddedRecords:
        """The new records."""

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The reading of each new record."""

    @property
    def scope(self) -> str:
        """The fingerprint of the scope that made their embeddings."""

    @property
    def removed(self) -> tuple[str, ...]:
        """The ids of records to remove."""


@dataclass(frozen=True)
class _RecordUndo:
    """The changes of one patch, enough to undo them."""

    first: int  # the place of its first record
    removed: tuple[int, ...]  # places


class MemoryBank:
    """All records of a model. Every record keeps its place, also when it is removed. Appending
    costs only the new records, going back only the removed ones."""

    def __init__(self) -> None:
        self.records: list[Record] = []  # by place, removed ones too
        self.readings: list[Reading] = []
        self._scopes: list[str] = []
        self._embeddings: GrowingTensor | None = None  # their width comes with the first record
        self._active = GrowingTensor(torch.empty(0, dtype=torch.bool))
        self._places: dict[str, int] = {}  # of the active records, by id
        self._turns: list[_RecordUndo] = []
        self._changes = 0

    def __len__(self) -> int:
        """Return the number of active records."""
        return len(self._places)

    def __contains__(self, identity: object) -> bool:
        """Tell whether a request has an active record."""
        return identity in self._places

    @property
    def size(self) -> int:
        """The number of patches on the model."""
        return len(self._turns)

    @property
    def state(self) -> int:
        """A number that changes whenever records come, go or are taken back."""
        return self._changes

    @property
    def active(self) -> Tensor:
        """True at the places of active records, [places] bool."""
        return self._active.rows

    @property
    def embeddings(self) -> Tensor:
        """The embeddings of all records, [places, d]."""
        return torch.empty(0, 0) if self._embeddings is None else self._embeddings.rows

    @property
    def scopes(self) -> set[str]:
        """The fingerprints of the scopes that made the active records' embeddings."""
        return {self._scopes[place] for place in self._places.values()}

    def places(self) -> list[int]:
        """Return the places of the active records, in the order in which they came."""
        return list(self._places.values())

    def chosen(self, places: Sequence[int]) -> EmbeddedRecords:
        """Return the records at some places."""
        return EmbeddedRecords(
            tuple(self.records[i] for i in places), self.embeddings[list(places)]
        )

    def extend(self, patch: RecordChange) -> Tensor:
        """Remove a patch's old records and append its new ones; return the new embeddings as they
        now stand.

        A new record replaces an earlier one of the same request. A record to remove that is not
        there is no error: its patch may have been reverted. Raises EditError for embeddings of
        another width.
        """
        self._require_width(patch)
        self._changes += 1
        identities = (*patch.removed, *(record.id for record in patch.records.records))
        places = tuple(self._places.pop(i) for i in identities if i in self._places)
        if places:
            self._active[torch.tensor(places)] = False
        self._turns.append(_RecordUndo(len(self.records), places))
        return self._append(patch)

    def _append(self, patch: RecordChange) -> Tensor:
        records = patch.records
        if not len(records):
            return records.embeddings
        for place, record in enumerate(records.records, start=len(self.records)):
            self._places[record.id] = place
        self.records += records.records
        self.readings += patch.readings
        self._scopes += [patch.scope] * len(records)
        self._active.append(torch.ones(len(records), dtype=torch.bool))
        if self._embeddings is None:
            self._embeddings = GrowingTensor(records.embeddings)
        return self._embeddings.append(records.embeddings)

    def _require_width(self, patch: RecordChange) -> None:
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
        """See `Effect.attached`: nothing is hooked, as the answering side looks records up."""
        return nullcontext()

    @property
    def beside(self) -> Mapping[str, int]:
        """See `Effect.beside`: its records."""
        return {MEMORY: len(self)} if len(self) else {}

    def silenced(self) -> AbstractContextManager[None]:
        """See `Effect.silenced`."""
        return nullcontext()

    def require_way_back(self, size: int) -> None:
        """See `Effect.require_way_back`: every size can be reached."""

    def settle(self) -> None:
        """See `Effect.settle`: nothing is let go."""

    def truncate(self, size: int) -> None:
        """Go back to the state after the first `size` patches."""
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
        places = self._active.rows.nonzero().squeeze(-1).tolist()
        self._places = {self.records[place].id: place for place in places}
