"""Memory patches: edits kept as texts beside the model (SERAC, IKE); no weight is touched.

A patch adds records, with their embeddings and how each is to be read, and takes away records that
no longer hold. `MemoryPatch` is what a step adds; `MemoryBank` is what a model remembers, and
comes back to any earlier state exactly. Which record an input is about is not decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from continual.errors import EditError
from continual.patches.owners import others_places, require_owners
from continual.patches.records import Record, Records
from continual.queries.growing import GrowingTensor

_NOTHING = Records((), torch.empty(0, 0))


@dataclass(frozen=True)
class Reading:
    """How an input that is about a record is answered: who reads it, and behind which words."""

    method: str  # serac or ike
    context: str  # stands in front of the input


class Remembering(Protocol):
    """What a memory patch needs of the model that it is put on."""

    @property
    def memory(self) -> MemoryBank:
        """What the model remembers."""


@dataclass(frozen=True)
class MemoryPatch:
    """Records with their readings, one each, and the ids of the records that go."""

    kind: ClassVar[str] = "memory"

    records: Records = _NOTHING
    readings: tuple[Reading, ...] = ()
    scope: str = ""  # the fingerprint of what made the embeddings
    removed: tuple[str, ...] = ()  # they go before the new ones come
    removed_for: tuple[str, ...] = ()  # the requests that they make room for; empty: not known

    @property
    def rows(self) -> int:
        """Records, and then those that go."""
        return len(self.records) + len(self.removed)

    @property
    def owners(self) -> tuple[str, ...]:
        """A record is its request's; one that goes belongs to the request that it goes for."""
        if len(self.removed_for) != len(self.removed):
            return ()
        return (*(record.id for record in self.records.records), *self.removed_for)

    @property
    def weight_blocks(self) -> tuple[int, ...]:
        """None."""
        return ()

    def tensors(self) -> dict[str, Tensor]:
        """embeddings [n, d]."""
        return {"embeddings": self.records.embeddings}

    def meta(self) -> dict[str, Any]:
        """The texts, what made the embeddings, and what goes."""
        pairs = zip(self.records.records, self.readings, strict=True)
        return {
            "scope": self.scope,
            "records": [_to_json(record, reading) for record, reading in pairs],
            "removed": list(self.removed),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """See `Patch.from_tensors`."""
        try:
            entries = meta["records"]
            records = tuple(
                Record(e["id"], e["prompt"], e["target"], e.get("subject")) for e in entries
            )
            readings = tuple(Reading(e["method"], e["context"]) for e in entries)
            kept = Records(records, tensors["embeddings"])
            return cls(kept, readings, str(meta["scope"]), tuple(meta["removed"]))
        except KeyError as error:
            raise EditError(
                f"A memory patch has no {error}: its file is not one of ours."
            ) from None

    def put_on(self, model: Remembering) -> Sequence[Tensor]:
        """See `Patch.put_on`."""
        return [model.memory.extend(self)]

    def norm(self) -> float:
        """How many records it adds."""
        return float(len(self.records))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Sequence[Self]:
        """One patch for each run of records from one scope. See `Patch.joined`."""
        removed: dict[str, None] = {}
        alive: dict[str, tuple[Self, int]] = {}  # by id, in the order of the bank
        for part in parts:
            removed |= dict.fromkeys(part.removed)
            for identity in part.removed:
                alive.pop(identity, None)
            for number, record in enumerate(part.records.records):
                alive.pop(record.id, None)
                alive[record.id] = (part, number)
        runs = [list(run) for _, run in groupby(alive.values(), key=lambda own: own[0].scope)]
        first = [cls(removed=tuple(removed))] if removed else []
        return [*first, *(cls._of_run(run) for run in runs)]

    @classmethod
    def _of_run(cls, run: Sequence[tuple[Self, int]]) -> Self:
        records = tuple(part.records.records[number] for part, number in run)
        embeddings = torch.stack([part.records.embeddings[number] for part, number in run])
        readings = tuple(part.readings[number] for part, number in run)
        return cls(Records(records, embeddings), readings, run[0][0].scope)

    def without(self, request_id: str) -> Self | None:
        """See `Patch.without`. What has gone for the request stays."""
        owners = self.owners
        count = len(self.records)
        kept = others_places(owners[:count], request_id)
        left = others_places(owners[count:], request_id)
        if not kept and not left:
            return None
        records = tuple(self.records.records[i] for i in kept)
        return replace(
            self,
            records=Records(records, self.records.embeddings[kept]),
            readings=tuple(self.readings[i] for i in kept),
            removed=tuple(self.removed[i] for i in left),
            removed_for=tuple(self.removed_for[i] for i in left),
        )

    def owned_by(self, owners: tuple[str, ...]) -> Self:
        """See `Patch.owned_by`."""
        require_owners(owners, self.rows, "records")
        owned = replace(self, removed_for=owners[len(self.records) :])
        if owned.owners != owners:
            raise EditError("A memory patch has records that are owned by other requests.")
        return owned

    def check(self) -> None:
        """See `Patch.check`."""
        embeddings, count = self.records.embeddings, len(self.records)
        if embeddings.ndim != 2 or len(embeddings) != count or len(self.readings) != count:
            raise EditError(
                f"A memory patch does not fit together: {count} records, {len(self.readings)} "
                f"readings, embeddings {tuple(embeddings.shape)}."
            )
        if embeddings.dtype != torch.float32 or not bool(torch.isfinite(embeddings).all()):
            raise EditError("The embeddings of a memory patch are not all finite float32 numbers.")
        if len({record.id for record in self.records.records}) < count:
            raise EditError("A memory patch has two records of one request.")


def _to_json(record: Record, reading: Reading) -> dict[str, str]:
    about = {} if record.subject is None else {"subject": record.subject}
    return {
        "id": record.id,
        "prompt": record.prompt,
        "target": record.target,
        **about,
        "method": reading.method,
        "context": reading.context,
    }


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

    def extend(self, patch: MemoryPatch) -> Tensor:
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

    def _append(self, patch: MemoryPatch) -> Tensor:
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

    def _require_width(self, patch: MemoryPatch) -> None:
        width = self.embeddings.shape[1]
        if len(patch.records) and width not in (0, patch.records.embeddings.shape[1]):
            raise EditError(
                f"A memory patch has embeddings of {patch.records.embeddings.shape[1]} numbers, "
                f"the memory has {width}: another encoder made them."
            )

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
