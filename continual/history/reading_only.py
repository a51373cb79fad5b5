"""Reads a stream as `apply` would, and applies nothing: needs no model, and makes no tokens."""

from __future__ import annotations

from continual.history.inspection import JsonObject, retained_at
from continual.history.reports import Remarks
from continual.prompts import shown_prompt
from continual.streams import Stream
from continual.streams.places import place_in
from store import Store

FIRST_MAX = 3  # requests shown as they were read


def read_only(store: Store, stream: Stream) -> JsonObject:
    """Report the records that `apply` would read from the history's position in the stream. Checks
    no limits of tokens.

    Raises StreamError for a stream that cannot be read, and StreamChanged.
    """
    place = place_in(store, stream)
    items = iter(stream) if place is None else stream.after(place.position, place.rolling)
    applied_ids = {
        i for i, retained in retained_at(store, store.head).requests.items() if retained.applied
    }
    remarks = Remarks()
    records: list[JsonObject] = []
    total = requests = repeats = 0
    for item in items:
        total += 1
        if item.reason is not None:
            remarks.quarantined(item.number, item.reason)
        remarks.unknown.update(item.unknown)
        for request in item.requests:
            requests += 1
            repeats += request.id in applied_ids
            remarks.unnamed += bool(request.subject) and not request.named_subject
            if len(records) < FIRST_MAX:
                records.append(_shown(request.to_json()))
    return {
        "type": "dry_run",
        "stream": stream.name,
        "from": 0 if place is None else place.position,
        "read": total,
        "requests": requests,
        "in_force": repeats,
        "quarantined": sum(remarks.reasons.values()),
        "first": records,
        **remarks.to_json(),
    }


def _shown(request: JsonObject) -> JsonObject:
    keys = ("prompt", "messages", "target_new", "subject", "relation")
    return {"prompt": shown_prompt(request), **{k: request[k] for k in keys if k in request}}
