"""Embedding the memory anew, when a store names another encoder or scope than before.

A revision of operation "re-embed" has, for every patch with records, the same patch with other
embeddings stand in its place: who a record belongs to, and what can be taken back, stays as it is.
What had made the embeddings before is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from continual.errors import CeditError
from continual.memory.recall import recall_of
from continual.memory.scope import Scope
from continual.open_store import OpenStore
from continual.patches import Patch, pack
from continual.patches.memory import MemoryPatch
from store import Draft, Layer, Replacement, Revision, StoreError

OPERATION = "re-embed"


@dataclass(frozen=True)
class Reembedded:
    """What was done."""

    revision: Revision
    records: int
    scope: str  # the fingerprint of what has made the embeddings now


def reembed(opened: OpenStore) -> Reembedded:
    """Embed all records in the history of head by what `[memory]` names now, and measure the model
    with them. Raises CeditError where there is nothing to embed."""
    store, scope = opened.store, recall_of(opened.edited).scope
    before = store.head
    try:
        replaces, count = _put_anew(opened, store.layers(before), scope)
        if not count:
            raise CeditError(
                "There is nothing to embed anew: no record is of another scope than [memory] names."
            )
        fingerprint = opened.edited.fingerprint
        revision = store.commit(
            Draft(
                OPERATION, before.id, fingerprint, {"scope": scope.fingerprint}, replaces=replaces
            )
        )
    except BaseException:
        opened.forget_standing()
        with suppress(StoreError):  # a store that a full disk has closed
            opened.stand_at("head")
        raise
    opened.states.follow(revision)
    opened.settle()
    return Reembedded(revision, count, scope.fingerprint)


def _put_anew(
    opened: OpenStore, layers: Sequence[Layer], scope: Scope
) -> tuple[dict[str, Replacement | None], int]:
    """Put all layers on with new embeddings; what takes the place of which, and how many records
    that are."""
    replaces: dict[str, Replacement | None] = {}
    count = 0
    opened.edited.take_off(0)
    for layer in layers:
        parts = opened.patches(layer.patch)
        anew = [_anew(part, scope) for part in parts]
        if any(anew):
            parts = tuple(new or old for old, new in zip(parts, anew, strict=True))
            replaces[layer.revision.id] = Replacement(*pack(parts))
            count += sum(len(new.records) for new in anew if new)
        opened.edited.put(parts)
        opened.edited.settle()
    return replaces, count


def _anew(part: Patch, scope: Scope) -> MemoryPatch | None:
    """A patch with records of another scope, embedded by this one; None for any other."""
    if not isinstance(part, MemoryPatch) or part.scope in ("", scope.fingerprint):
        return None
    return replace(part, records=scope.records(part.records.records), scope=scope.fingerprint)
