"""Standing at a state: by snapshots as far as there are any, then by patches.

A snapshot holds the joined patches of one segment: their neurons in one piece, their columns in one
piece or, if these take more room than the matrix or dense patches edit it too, the matrix; of dense
patches the parameters as they stand. Put on, it leaves the same bytes as the patches one by one.
A writer makes snapshots as it passes; nothing depends on them: a missing or damaged one is made
again from the patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from continual.model import EditedModel
from continual.patches import Patch, pack, unpack
from continual.patches.dense import DensePatch
from continual.patches.low_rank import LowRankPatch
from continual.patches.slots import SlotsPatch
from continual.patches.weight_sums import summed, without_superseded
from store import BlobRef, Layer, Revision, Segment, Store, StoreError
from store.errors import IntegrityError


class Gathered:
    """The patches of a segment that a snapshot is made of; of dense patches only their paths, as
    the model has their sums."""

    def __init__(self) -> None:
        self._parts: list[Patch] = []
        self._dense: dict[str, int] = {}  # block by path

    def take(self, parts: Iterable[Patch]) -> None:
        """Take in parts that were put on."""
        for part in parts:
            if isinstance(part, DensePatch):
                self._dense |= part.blocks
            elif isinstance(part, SlotsPatch):  # they stand among neurons, in one order with them
                self._parts.append(part.as_neurons())
            else:
                self._parts.append(part)

    def joined(self, edited: EditedModel) -> tuple[Patch, ...]:
        """Join the patches into as few as possible, kind by kind: kinds are independent of each
        other, except for those that edit parameters, which are summed up together. All of them have
        to be on the model, and no later patch."""
        kinds: dict[type[Patch], list[Patch]] = {}
        low_rank = [part for part in self._parts if isinstance(part, LowRankPatch)]
        for part in self._parts:
            if isinstance(part, LowRankPatch):
                continue
            kinds.setdefault(type(part), []).append(part)
        joined = [part for kind, equals in kinds.items() for part in kind.joined(equals)]
        return (*joined, *summed(low_rank, self._dense, edited))


@dataclass(frozen=True)
class Snapshot:
    """The joined patches of a segment, and the names of the state behind it."""

    parts: tuple[Patch, ...]
    fingerprint: str
    rows_state: str

    @classmethod
    def of(cls, gathered: Gathered, edited: EditedModel) -> Snapshot:
        """Make a snapshot of a segment's patches. All of them have to be on the model, and no later
        patch."""
        return cls(gathered.joined(edited), edited.fingerprint, edited.rows_state)

    def is_same(self, other: Snapshot) -> bool:
        """Tell whether both have the same bits and names."""
        (mine, meta), (theirs, other_meta) = self.to_file(), other.to_file()
        return (
            meta == other_meta
            and mine.keys() == theirs.keys()
            and all(torch.equal(mine[name], theirs[name].cpu()) for name in mine)
        )

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Snapshot:
        """Read a snapshot from the tensors and meta of `to_file`."""
        return cls(unpack(tensors, meta), meta["fingerprint"], meta["weights_state"])

    def to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and meta of the snapshot's file."""
        tensors, meta = pack(self.parts)
        names = {"fingerprint": self.fingerprint, "weights_state": self.rows_state}
        return tensors, {**meta, **names}


class StateKeeper:
    """Puts the model at states of a history, and keeps the snapshots that make this quick."""

    def __init__(self, store: Store, edited: EditedModel) -> None:
        self._store, self._edited = store, edited
        self._at: str | None = None  # the revision stood at or followed last
        self._segmenter = store.segmenter()  # has taken in that revision's layers

    @property
    def at(self) -> str | None:
        """The id of the revision that the model stood at or followed last; None before any."""
        return self._at

    def stand(self, revision: Revision) -> list[Revision]:
        """Put the model at a revision; return its lineage, base first. Raises IntegrityError if the
        fingerprint differs."""
        return self.stand_on(revision, self._store.layers(revision))

    def stand_on(self, revision: Revision, layers: Sequence[Layer]) -> list[Revision]:
        """Put the model at a revision whose layers are at hand, without reading the journal."""
        if self._at != revision.id or self._edited.fingerprint != revision.fingerprint:
            self.build(layers)
        self._at = revision.id
        self._edited.stands_in(self._store.path, revision.id)
        return [layer.revision for layer in layers]

    def build(self, layers: Sequence[Layer]) -> None:
        """Put the model at the state of some layers. Raises IntegrityError as `stand` does."""
        self._at = None
        self._segmenter = self._store.segmenter()
        segments = self._segmenter.take_all(layers)
        self._edited.take_off(0)
        done = self._stand_on_snapshots(layers, segments)
        for segment in segments[done:]:
            self._keep(segment, self._put(layers[segment.first : segment.last]))
        self._put(layers[segments[-1].last if segments else 0 :])

    def follow(self, revision: Revision) -> None:
        """Follow a new revision, at which the model stands; keep a snapshot if a segment is full
        now."""
        if revision.parent == self._at and not revision.replaces:
            full = self._segmenter.take(revision.patch)
        else:
            self._segmenter = self._store.segmenter()
            self._segmenter.take_all(self._store.layers(revision))
            full = None
        self._at = revision.id
        self._edited.settle()
        self._edited.stands_in(self._store.path, revision.id)
        if full is not None and self.snapshot(full) is None:
            gathered = Gathered()
            for ref in full.patches:
                gathered.take(self.patches(ref))
            self._keep(full, gathered)

    def patches(self, ref: BlobRef | None) -> tuple[Patch, ...]:
        """Read the parts of a patch; empty for None."""
        return () if ref is None else unpack(*self._store.patch(ref))

    def snapshot(self, segment: Segment) -> Snapshot | None:
        """Read the snapshot of a segment; None if there is none, or it is damaged."""
        try:
            entry = self._store.snapshots.get(segment.name)
            return None if entry is None else Snapshot.from_file(entry.tensors, entry.meta)
        except (IntegrityError, KeyError):
            return None

    def _stand_on_snapshots(self, layers: Sequence[Layer], segments: Sequence[Segment]) -> int:
        """Put on the snapshots from base on, up to the first missing one; return their number."""
        parts: list[Patch] = []
        latest: Snapshot | None = None
        count = 0
        for segment in segments:
            snapshot = self.snapshot(segment)
            if snapshot is None:
                break
            parts = [*without_superseded(parts, snapshot.parts), *snapshot.parts]
            latest, count = snapshot, count + 1
        if latest is None:
            return 0
        reached = layers[segments[count - 1].last - 1]
        if reached.is_waypoint and reached.revision.fingerprint != latest.fingerprint:
            return 0
        self._edited.put_many(parts, latest.fingerprint, latest.rows_state)
        self._edited.settle()
        return count

    def _put(self, layers: Sequence[Layer]) -> Gathered:
        """Put layers on, and gather their patches."""
        gathered = Gathered()
        for layer in layers:
            parts = self.patches(layer.patch)
            self._edited.put(parts)
            self._edited.settle()
            self._check(layer)
            gathered.take(parts)
        return gathered

    def _check(self, layer: Layer) -> None:
        if layer.is_waypoint:
            check_fingerprint(layer.revision, self._edited.fingerprint)

    def _keep(self, segment: Segment, gathered: Gathered) -> None:
        """Write a snapshot if it can be written: nothing depends on it."""
        if not self._store.writable:
            return
        try:
            self._store.snapshots.put(segment.name, *Snapshot.of(gathered, self._edited).to_file())
        except StoreError:
            return


def check_fingerprint(revision: Revision, found: str) -> None:
    """Raise IntegrityError if a rebuilt state's fingerprint differs from its revision's."""
    if revision.fingerprint != found:
        raise IntegrityError(
            f"revision {revision.id[:12]}",
            f"its patches give the fingerprint {found[:12]}, it says {revision.fingerprint[:12]}",
        )
