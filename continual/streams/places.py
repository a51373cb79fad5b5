"""Where a history stands in a stream, and a stream as a store's settings have it read.

Knows the names under which places are kept: a stream's short name, and in older stores the path
that it was read from.
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
class Place:
    """How far a history has come in a stream."""

    position: int  # records
    rolling: str

    def to_json(self) -> dict[str, Any]:
        """The stream's state, as a store keeps it."""
        return {"position": self.position, "rolling": self.rolling}


def place_in(store: Store, stream: Stream) -> Place | None:
    """The place of a store's history in a stream; None where it has read nothing of it, or the
    stream has no past."""
    name = stream.short_name()
    if name is None:
        return None
    state = store.stream(name) or store.stream(stream.name)
    return None if state is None else Place(int(state["position"]), str(state["rolling"]))


def stream_for(
    store: Store,
    source: str,
    *,
    follow: bool = False,
    stop: threading.Event | None = None,
    keys: dict[str, str] | None = None,
) -> Stream:
    """The stream in a file, within the limits of the store's `[stream]` table, and read by its
    keys where no others are given. Raises StreamError, and CeditError for keys that are none."""
    settings = StoreSettings.of(store.settings).stream
    limits = Limits(
        line_bytes_max=settings.line_bytes_max, array_bytes_max=settings.array_bytes_max
    )
    told = checked(keys or settings.keys)
    return open_stream(source, limits=limits, follow=follow, stop=stop, keys=told)
