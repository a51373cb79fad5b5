"""A history that has lost patches goes on without them.

A revision of operation "repair" says which patches are lost, and has nothing stand in their places:
the state is base and all other patches. The requests of the steps that made them count no longer,
and can be applied again. Healing the store's own files is left to `store.repair`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from continual.effects import MOVED
from continual.open_store import OpenStore
from continual.recheck.retention import ATTEMPTED, outcomes_of, reverted_later
from store import BlobRef, Draft, Revision
from store.check import REPAIR, lost_patches


@dataclass(frozen=True)
class GivenUp:
    """What a history went on without."""

    revision: Revision
    requests: tuple[str, ...]  # that were in force and are not any more


def give_up(opened: OpenStore, lost: Sequence[BlobRef]) -> GivenUp:
    """Go on at head without these patches. The model stands at base, since head cannot be."""
    store, edited = opened.store, opened.edited
    head, digests = store.head, {ref.sha256 for ref in lost}
    layers = store.layers(head)
    gone = reverted_later([layer.revision for layer in layers])
    requests: list[str] = []
    moved: dict[str, set[int]] = {}
    edited.take_off(0)
    replaces: dict[str, None] = {}
    for layer, reverted in zip(layers, gone, strict=True):
        if layer.patch is None or layer.patch.sha256 not in digests:
            edited.put(opened.patches(layer.patch))
            edited.settle()
            continue
        replaces[layer.revision.id] = None
        edited.put(())
        for name in MOVED:
            moved.setdefault(name, set()).update(layer.revision.body.get(name, ()))
        outcomes = outcomes_of(layer.revision.body)
        requests += [o.id for o in outcomes if o.outcome in ATTEMPTED and o.id not in reverted]
    body: dict[str, Any] = {"reverted": requests, "lost": sorted(digests)}
    body |= {name: sorted(blocks) for name, blocks in moved.items() if blocks}
    draft = Draft(REPAIR, head.id, edited.fingerprint, body, replaces=replaces)
    revision = store.commit(draft)
    opened.forget_standing()
    opened.settle()
    return GivenUp(revision, tuple(requests))


def whole_revisions(opened: OpenStore) -> list[Revision]:
    """The revisions whose states can be made: none of their patches is lost."""
    revisions = list(opened.store.revisions())
    lost = lost_patches(revisions)
    if not lost:
        return revisions
    return [
        revision
        for revision in revisions
        if not any(
            layer.patch is not None and layer.patch.sha256 in lost
            for layer in opened.store.layers(revision)
        )
    ]
