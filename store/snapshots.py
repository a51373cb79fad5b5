"""Snapshots: what every so many patches come to, kept so that a state need not read each of them.

A state's patches are cut into segments, each of as many, from base on. A segment's name is a digest
over all patches up to its end, so that states that begin alike share segments, and one in which a
patch was replaced has others behind it. They can be made again, and removed at any time. What a
segment holds is the engine's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from store.revisions import Layer

PATCHES = 500  # in a segment


@dataclass(frozen=True)
class Segment:
    """A run of layers."""

    name: str
    first: int  # its place among the state's layers
    last: int  # the place behind it


def segments(base: str, layers: Sequence[Layer], size: int) -> list[Segment]:
    """The whole segments of a state, oldest first; the patches left over are in none.

    `base` is the fingerprint of the base model.
    """
    digest = hashlib.sha256(base.encode())
    found: list[Segment] = []
    first = count = 0
    for place, layer in enumerate(layers, start=1):
        if layer.patch is None:
            continue
        digest.update(layer.patch.sha256.encode())
        count += 1
        if count % size == 0:
            name = digest.hexdigest()
            found.append(Segment(f"{name[:2]}/{name}", first, place))
            first = place
    return found
