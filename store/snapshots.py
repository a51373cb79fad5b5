"""Snapshots: what every so many patches come to, kept so that a state need not read each of them.

A state's patches are cut into segments, each of as many, from base on. A segment's name is a digest
over all patches up to its end, so that states that begin alike share segments, and one in which a
patch was replaced has others behind it. They can be made again, and removed at any time. What a
segment holds is the engine's.
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
    first: int  # its place among the state's layers
    last: int  # the place behind it
    patches: tuple[BlobRef, ...]


class Segmenter:
    """Cuts the layers of a state into segments as they come."""

    def __init__(self, base: str, size: int) -> None:
        """`base` is the fingerprint of the base model, `size` the patches of a segment."""
        self._digest, self._size = hashlib.sha256(base.encode()), size
        self._first = self._place = 0
        self._patches: list[BlobRef] = []

    def take(self, patch: BlobRef | None) -> Segment | None:
        """Take in the next layer; the segment that it fills, if it does."""
        self._place += 1
        if patch is None:
            return None
        self._digest.update(patch.sha256.encode())
        self._patches.append(patch)
        if len(self._patches) < self._size:
            return None
        name = self._digest.hexdigest()
        full = Segment(f"{name[:2]}/{name}", self._first, self._place, tuple(self._patches))
        self._first, self._patches = self._place, []
        return full

    def take_all(self, layers: Iterable[Layer]) -> list[Segment]:
        """Take in layers; the segments that they fill."""
        filled = (self.take(layer.patch) for layer in layers)
        return [segment for segment in filled if segment is not None]
