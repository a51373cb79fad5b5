"""Rolling back: head moved to an earlier revision, or to any other, with a record of it.

Nothing is erased, and the way forward is the same operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from continual.history.rewriting import rewrite
from continual.open_store import OpenStore
from store import Draft, Layer, Revision, operations


def roll_back(opened: OpenStore, name: str) -> Revision:
    """Move head to a revision, and return it. Streams go on from their positions there."""
    store = opened.store
    target = store.revision(name)

    def stand_at_target(layers: Sequence[Layer]) -> Draft:
        streams = _streams_after(opened.states.stand(target))
        return Draft(
            operation=operations.ROLLBACK,
            parent=target.id,
            fingerprint=target.fingerprint,
            body={"from": layers[-1].revision.id, "target": target.id},
            streams={**dict.fromkeys(store.streams()), **streams},
            head=target.id,
        )

    rewrite(opened, stand_at_target)
    return target


def _streams_after(lineage: Iterable[Revision]) -> dict[str, Any]:
    """Return the streams' states at the end of a lineage, from the revisions of this lineage
    alone."""
    states: dict[str, Any] = {}
    for revision in lineage:
        states.update(revision.body.get("streams", {}))
    return states
