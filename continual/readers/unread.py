"""The keys of a record that its reader does not look at, and as much of them as is kept."""

from __future__ import annotations

import json
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

EXTRA_CHARACTERS_MAX = 16_384  # of the JSON of all that a request keeps beside its own keys


class Marked(dict[str, Any]):
    """A record that knows which of its keys were read. Who looks at all of it has read all."""

    def __init__(self, record: Mapping[str, object]) -> None:
        super().__init__(record)
        self.unread = dict.fromkeys(super().keys())

    def __getitem__(self, key: str) -> Any:
        self.unread.pop(key, None)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value under a key, which has then been read."""
        self.unread.pop(key, None)
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:
        self.unread.clear()
        return super().__iter__()

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        """All keys, which have then been read."""
        self.unread.clear()
        return super().keys()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """All values, which have then been read."""
        self.unread.clear()
        return super().values()

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """All pairs, which have then been read."""
        self.unread.clear()
        return super().items()


def kept(extra: Mapping[str, object]) -> dict[str, object]:
    """The values as a history keeps them: those that have a UTF-8 form, until they are too many;
    of the others, the keys with null."""
    room = EXTRA_CHARACTERS_MAX
    found: dict[str, object] = {}
    for key, value in extra.items():
        try:
            key.encode("utf-8")
            size = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8"))
        except (ValueError, RecursionError):
            continue
        found[key] = value if size <= room else None
        room -= size if size <= room else 0
    return found
