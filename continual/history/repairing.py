"""A history that has lost patches goes on without them.

A revision of operation "repair" names the lost patches and replaces them by nothing: the state is
base and all other patches. The requests of the steps that made the lost patches count no longer,
and can be applied again. Leaves healing the store's own files to `store.repair`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from continual.effects import MOVED
from continual.history.rewriting import Choice, relaid, rewrite
from continual.open_store import OpenStore
from continual.recheck.retention import ATTEMPTED, outcomes_of, reverted_later
from store import BlobRef, Draft, Layer, Revision, operations
from store.check import lost_patches


@dataclass(frozen=True)
class GivenUp:
    """The revision that gave up lost patches, and the requests that this took out."""

    revision: Revision
    requests: tuple[str, ...]  # in force before, and no longer


def give_up(opened: OpenStore, lost: Sequence[BlobRef]) -> GivenUp:
    """Go on at head without these patches. The model has to be at base: head cannot be built."""
    digests = {ref.sha256 for ref in lost}

    def choose(layer: Layer) -> Choice:
        is_lost = layer.patch is not None and layer.patch.sha256 in digests
        return ((), True) if is_lost else (opened.patches(layer.patch), False)

    def leave_out(layers: Sequence[Layer]) -> Draft:
        replaces = relaid(opened, layers, choose)
        steps = [layer.revision for layer in layers if layer.revision.id in replaces]
        body: dict[str, Any] = {"reverted": _in_force(layers, replaces), "lost": sorted(digests)}
        for name in MOVED:
            if blocks := {block for step in steps for block in step.body.get(name, ())}:
                body[name] = sorted(blocks)
        head, fingerprint = layers[-1].revision, opened.edited.fingerprint
        return Draft(operations.REPAIR, head.id, fingerprint, body, replaces=replaces)

    revision = rewrite(opened, leave_out)
    opened.settle()
    return GivenUp(revision, tuple(revision.body["reverted"]))


def _in_force(layers: Sequence[Layer], steps: Collection[str]) -> list[str]:
    """Return the requests that these steps attempted and no later revision took out."""
    removals = reverted_later([layer.revision for layer in layers])
    return [
        outcome.id
        for layer, reverted in zip(layers, removals, strict=True)
        if layer.revision.id in steps
        for outcome in outcomes_of(layer.revision.body)
        if outcome.outcome in ATTEMPTED and outcome.id not in reverted
    ]


def whole_revisions(opened: OpenStore) -> list[Revision]:
    """Return the revisions whose states can be built: none of their patches is lost."""
    revisions = list(opened.store.revisions())
    lost_digests = lost_patches(revisions)
    if not lost_digests:
        return revisions
    return [
        revision
        for revision in revisions
        if not any(
            layer.patch is not None and layer.patch.sha256 in lost_digests
            for layer in opened.store.layers(revision)
        )
    ]
