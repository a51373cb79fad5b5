"""Finds a history's place in a stream, and opens streams by a store's settings.

Knows the names under which a store keeps places: a stream's short name, and in older stores the
path that it was read from.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from continual.readers.mapped import checked
from continual.requests import Limits
from continual.settings import StoreSettings
from continual.streams import Stream, open_stream
from store import Store


@dataclass(frozen=True)
class StreamPlace:
    """A history's place in a stream."""

    position: int  # records
    rolling: str

    def to_json(self) -> dict[str, Any]:
        """Return the stream's state in the form that a store keeps."""
        return {"position": self.position, "rolling": self.rolling}


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
