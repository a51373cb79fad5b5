"""Memory patches: edits kept as texts beside the model (SERAC, IKE); no weight is touched.

A patch adds records, with their embeddings and readings, and takes away records that no longer
hold. A step adds a `MemoryPatch`; `effects.records` holds all records of a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from continual.anatomy import Anatomy
from continual.effects import MEMORY, Reach
from continual.effects.records import EmbeddedRecords, MemoryBank, Reading, Record
from continual.errors import EditError
from continual.patches.low_rank import Factors
from continual.patches.owners import by_kind, others_places, require_owners

_NOTHING = EmbeddedRecords((), torch.empty(0, 0))


class Remembering(Protocol):
    """The model that a memory patch is put on."""

    @property
    def memory(self) -> MemoryBank:
        """The model's records."""


@dataclass(frozen=True)
class MemoryPatch:
    """New records, with a reading each, and the ids of the records to remove."""

    kind: ClassVar[str] = "memory"
    is_shared: ClassVar[bool] = False
    narrow_kind: ClassVar[str] = "narrow memory"
    """The kind that a file with records of a least score names: older versions refuse it."""

    records: EmbeddedRecords = _NOTHING
    readings: tuple[Reading, ...] = ()
    scope: str = ""  # the fingerprint of the scope that made the embeddings
    removed: tuple[str, ...] = ()  # removed before the new records come
    removed_for: tuple[str, ...] = ()  # the request that each was removed for; empty: not known

    @property
    def rows(self) -> int:
        """The number of new and removed records; the new ones come first."""
        return len(self.records) + len(self.removed)

    @property
    def owners(self) -> tuple[str, ...]:
        """The request of each new record, then the request for which each removed one went."""
        if len(self.removed_for) != len(self.removed):
            return ()
        return (*(record.id for record in self.records.records), *self.removed_for)

    @property
    def reach(self) -> Reach:
        """See `Patch.reach`."""
        return Reach(records=bool(self.rows))

    def beside(self) -> Mapping[str, tuple[str, ...]]:
        """See `Patch.beside`: its new records."""
        return by_kind([MEMORY] * len(self.records), self.owners)

    def in_parameters(self, anatomy: Anatomy) -> Mapping[str, Factors | None]:
        """See `Patch.in_parameters`: none."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Return the embeddings [n, d]."""
        return {"embeddings": self.records.embeddings}

    def meta(self) -> dict[str, Any]:
        """Return the texts, the scope of the embeddings, and the ids to remove; with a record of a
        least score also the kind that says so."""
        pairs = zip(self.records.records, self.readings, strict=True)
        is_narrow = any(record.score_min for record in self.records.records)
        return {
            **({"kind": self.narrow_kind} if is_narrow else {}),
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
                Record(
                    e["id"],
                    e["prompt"],
                    e["target"],
                    e.get("subject"),
                    float(e.get("score_min", 0.0)),
                )
                for e in entries
            )
            readings = tuple(Reading(e["method"], e["context"]) for e in entries)
            embedded_records = EmbeddedRecords(records, tensors["embeddings"])
            return cls(embedded_records, readings, str(meta["scope"]), tuple(meta["removed"]))
        except KeyError as error:
            raise EditError(
                f"A memory patch has no {error}: its file is not one of ours."
            ) from None

    def put_on(self, model: Remembering) -> Sequence[Tensor]:
        """See `Patch.put_on`."""
        return [model.memory.extend(self)]

    def norm(self) -> float:
        """Return the number of new records."""
        return float(len(self.records))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Sequence[Self]:
        """See `Patch.joined`: makes one patch for each run of records from one scope."""
        removed_ids: dict[str, None] = {}
        origins: dict[str, tuple[Self, int]] = {}  # by id, in the order of the bank
        for part in parts:
            removed_ids |= dict.fromkeys(part.removed)
            for identity in part.removed:
                origins.pop(identity, None)
            for number, record in enumerate(part.records.records):
                origins.pop(record.id, None)
                origins[record.id] = (part, number)
        runs = [
            list(run) for _, run in groupby(origins.values(), key=lambda origin: origin[0].scope)
        ]
        removals = [cls(removed=tuple(removed_ids))] if removed_ids else []
        return [*removals, *(cls._of_run(run) for run in runs)]

    @classmethod
    def _of_run(cls, run: Sequence[tuple[Self, int]]) -> Self:
        records = tuple(part.records.records[number] for part, number in run)
        embeddings = torch.stack([part.records.embeddings[number] for part, number in run])
        readings = tuple(part.readings[number] for part, number in run)
        return cls(EmbeddedRecords(records, embeddings), readings, run[0][0].scope)

    def without(self, request_id: str) -> Self | None:
        """See `Patch.without`. Records removed for the request come back."""
        owners = self.owners
        count = len(self.records)
        record_places = others_places(owners[:count], request_id)
        removal_places = others_places(owners[count:], request_id)
        if not record_places and not removal_places:
            return None
        records = tuple(self.records.records[i] for i in record_places)
        return replace(
            self,
            records=EmbeddedRecords(records, self.records.embeddings[record_places]),
            readings=tuple(self.readings[i] for i in record_places),
            removed=tuple(self.removed[i] for i in removal_places),
            removed_for=tuple(self.removed_for[i] for i in removal_places),
        )

    def owned_by(self, owners: tuple[str, ...]) -> Self:
        """See `Patch.owned_by`."""
        require_owners(owners, self.rows, "records")
        patch = replace(self, removed_for=owners[len(self.records) :])
        if patch.owners != owners:
            raise EditError("A memory patch has records that are owned by other requests.")
        return patch

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
        if not all(0.0 <= record.score_min <= 1.0 for record in self.records.records):
            raise EditError("The least score of a record in a memory patch is not from 0 to 1.")
        if len({record.id for record in self.records.records}) < count:
            raise EditError("A memory patch has two records of one request.")


def _to_json(record: Record, reading: Reading) -> dict[str, Any]:
    subject = {} if record.subject is None else {"subject": record.subject}
    score_min = {"score_min": record.score_min} if record.score_min else {}
    return {
        "id": record.id,
        "prompt": record.prompt,
        "target": record.target,
        **subject,
        **score_min,
        "method": reading.method,
        "context": reading.context,
    }
