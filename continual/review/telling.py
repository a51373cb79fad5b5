"""Corrections of the queue as JSON objects, for clients and terminals."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from continual.review.conflicts import InForce
from continual.review.items import QueueItem


def told(item: QueueItem) -> dict[str, Any]:
    """Return the facts of an item that a list shows."""
    request = item.request
    return {
        "object": "correction",
        "number": item.number,
        "state": item.state,
        "prompt": str(item.prompt),
        "target_new": None if request is None else request.target_new,
        "subject": None if request is None else request.subject,
        "request": None if request is None else request.id,
        "source": item.source,
        "editor": item.editor,
        "made_at": item.made_at,
        "changed_at": item.changed_at,
        "who": item.events[0].who,
        "duplicate_of": item.duplicate_of,
        "revision": item.revision,
        "held_by": None if item.hold is None else item.hold.who,
    }


def told_whole(item: QueueItem, in_force: InForce) -> dict[str, Any]:
    """Return everything on record about an item, and the corrections in force that it conflicts
    with."""
    request = item.request
    conflicts = [] if request is None else in_force.conflicts(request)
    return {
        **told(item),
        "content": None if request is None else request.to_json(),
        "origin": dict(item.origin),
        "events": [vars(event) for event in item.events],
        "proof": dict(item.proof),
        "conflicts": [asdict(conflict) for conflict in conflicts],
    }
