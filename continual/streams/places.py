"""Finds a history's place in a stream, reads on from it, and opens streams by a store's settings.

Knows the names under which a store keeps places: a stream's short name, and in older stores the
path that it was read from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from continual.errors import StreamChanged, StreamReplaced
from continual.readers.mapped import checked
from continual.requests import Limits
from continual.settings import StoreSettings
from continual.streams import Item, Stream, open_stream
from store import Store


@dataclass(frozen=True)
class StreamPlace:
    """A history's place in a stream."""

    position: int  # records
    rolling: str

    def to_json(self) -> dict[str, Any]:
        """Return the stream's state in the form that a store keeps."""
        return {"position": self.position, "rolling": self.rolling}


def items_onward(store: Store, stream: Stream, on_change: Callable[[str], None]) -> Iterator[Item]:
    """Yield a stream's items from a store's place in it. If the records read before are no longer
    there, or a followed file is replaced, say so by `on_change` and begin at the beginning."""
    items = _from_its_place(store, stream)
    while True:
        try:
            yield from items
            return
        except StreamReplaced as change:
            on_change(f"{change}. Reading the new one")
            items = _from_its_place(store, stream)
        except StreamChanged as change:
            on_change(f"{change}. Reading from its beginning; what is in force stays as it is")
            items = iter(stream)


def items_again(store: Store, stream: Stream, is_to_retry: Callable[[str], bool]) -> Iterator[Item]:
    """Yield the items before a store's place in a stream with a request to try again, by its id."""
    place = place_in(store, stream)
    if place is None:
        return
    tried: set[str] = set()
    for item in stream.before(place.position):
        ids = {request.id for request in item.requests} - tried
        if any(map(is_to_retry, ids)):
            tried |= ids
            yield replace(item, is_again=True)


def _from_its_place(store: Store, stream: Stream) -> Iterator[Item]:
    place = place_in(store, stream)
    return iter(stream) if place is None else stream.after(place.position, place.rolling)


def place_in(store: Store, stream: Stream) -> StreamPlace | None:
    """Return the place of a store's history in a stream; None if it has read nothing of it, or the
    stream has no past."""
    name = stream.short_name()
    if name is None:
        return None
    state = store.stream(name) or store.stream(stream.name)
    return None if state is None else StreamPlace(int(state["position"]), str(state["rolling"]))


def stream_for(
    store: Store,
    source: str,
    *,
    follow: bool = False,
    stop: threading.Event | None = None,
    keys: dict[str, str] | None = None,
) -> Stream:
    """Open the stream in a file, within the limits of the store's `[stream]` table, and read by its
    keys unless others are given. Raises StreamError, and CeditError for a key that a correction
    does not have."""
    settings = StoreSettings.of(store.settings).stream
    limits = Limits(
        line_bytes_max=settings.line_bytes_max, array_bytes_max=settings.array_bytes_max
    )
    key_map = checked(keys or settings.keys)
    return open_stream(source, limits=limits, follow=follow, stop=stop, keys=key_map)
