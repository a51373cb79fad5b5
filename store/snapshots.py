"""Snapshots: the sum of each run of patches, kept so that a state need not read every patch.

A state's patches are cut from base on into segments of equal size. A segment's name is a digest
over all patches up to its end, so that states that begin alike share segments, and a replaced patch
gives new names to its own segment and all later ones. Snapshots can be made again, and removed at
any time. Leaves the content of a snapshot to the engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from store.blobs import BlobRef
from store.revisions import Layer

PATCHES = 100  # in a segment: `python -m benchmarks.history --segments 0,100,500,2000`


@dataclass(frozen=True)
class Segment:
    """A run of layers."""

    name: str
    first: int  # the place of its first layer among the state's layers
    last: int  # the place behind its last layer
    patches: tuple[BlobRef, ...]


class Segmenter:
    """Cuts the layers of a state into segments as they come."""

    def __init__(self, base: str, size: int) -> None:
        """Begin at base. `base` is the base model's fingerprint, `size` the patches in a
        segment."""
        self._digest, self._size = hashlib.sha256(base.encode()), size
        self._first = self._place = 0
        self._patches: list[BlobRef] = []

    def take(self, patch: BlobRef | None) -> Segment | None:
        """Take in the next layer, and return the segment that it fills, if any."""
        self._place += 1
        if patch is None:
            return None
        self._digest.update(patch.sha256.encode())
        self._patches.append(patch)
        if len(self._patches) < self._size:
            return None
        name = self._digest.hexdigest()
        segment = Segment(f"{name[:2]}/{name}", self._first, self._place, tuple(self._patches))
        self._first, self._patches = self._place, []
        return segment

    def take_all(self, layers: Iterable[Layer]) -> list[Segment]:
        """Take in layers, and return the segments that they fill."""
        segments = (self.take(layer.patch) for layer in layers)
        return [segment for segment in segments if segment is not None]
