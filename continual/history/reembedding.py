"""Embedding the memory anew, when a store names another encoder or scope than before.

A revision of operation "re-embed" replaces every patch with records by the same patch with other
embeddings. Each record keeps its owner, and can be reverted as before. The earlier encoder is not
needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from continual.errors import CeditError
from continual.history.rewriting import Choice, relaid, rewrite
from continual.memory.recall import recall_of
from continual.memory.scope import Scope
from continual.open_store import OpenStore
from continual.patches import Patch
from continual.patches.memory import MemoryPatch
from store import Draft, Layer, Revision, operations


@dataclass(frozen=True)
class Reembedded:
    """The revision of a re-embedding, and the number of records embedded."""

    revision: Revision
    records: int
    scope: str  # the fingerprint of the scope that made the embeddings


def reembed(opened: OpenStore) -> Reembedded:
    """Embed all records in the history of head by the scope that `[memory]` names now, and measure
    the model with them. Raises CeditError if no record needs it."""
    scope = recall_of(opened.edited).scope
    patches: list[MemoryPatch] = []

    def embed_layer(layer: Layer) -> Choice:
        parts = opened.patches(layer.patch)
        replacements = [_anew(part, scope) for part in parts]
        patches.extend(replacement for replacement in replacements if replacement)
        return [
            replacement or original
            for original, replacement in zip(parts, replacements, strict=True)
        ], any(replacements)

    def embed(layers: Sequence[Layer]) -> Draft:
        replaces = relaid(opened, layers, embed_layer)
        if not patches:
            raise CeditError(
                "There is nothing to embed anew: no record is of another scope than [memory] names."
            )
        head, fingerprint = layers[-1].revision, opened.edited.fingerprint
        body = {"scope": scope.fingerprint}
        return Draft(operations.REEMBED, head.id, fingerprint, body, replaces=replaces)

    revision = rewrite(opened, embed)
    opened.settle()
    return Reembedded(revision, sum(len(part.records) for part in patches), scope.fingerprint)


def _anew(part: Patch, scope: Scope) -> MemoryPatch | None:
    """Return a patch with its records embedded by `scope`; None if the patch has no records or is
    of this scope already. A record's least score is of the earlier scope, and falls away."""
    if not isinstance(part, MemoryPatch) or part.scope in ("", scope.fingerprint):
        return None
    records = [replace(record, score_min=0.0) for record in part.records.records]
    return replace(part, records=scope.records(records), scope=scope.fingerprint)
