"""Finds the keys of a record that its reader did not read, and limits the size of those to keep."""

from __future__ import annotations

import json
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

EXTRA_CHARACTERS_MAX = 16_384  # of the JSON of the fields that a request keeps as `extra`


class Marked(dict[str, Any]):
    """A record that notes which of its keys were read; iterating over it reads all."""

    def __init__(self, record: Mapping[str, object]) -> None:
        super().__init__(record)
        self.unread = dict.fromkeys(super().keys())

    def __getitem__(self, key: str) -> Any:
        self.unread.pop(key, None)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value under a key, which then counts as read."""
        self.unread.pop(key, None)
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:
        self.unread.clear()
        return super().__iter__()

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        """Return all keys, which then count as read."""
        self.unread.clear()
        return super().keys()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """Return all values, which then count as read."""
        self.unread.clear()
        return super().values()

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """Return all pairs, which then count as read."""
        self.unread.clear()
        return super().items()


def kept(extra: Mapping[str, object]) -> dict[str, object]:
    """Return the fields that a history keeps: all with a JSON form in UTF-8, but with null in the
    place of values that do not fit into EXTRA_CHARACTERS_MAX together."""
    room = EXTRA_CHARACTERS_MAX
    result: dict[str, object] = {}
    for key, value in extra.items():
        try:
            key.encode("utf-8")
            size = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8"))
        except (ValueError, RecursionError):
            continue
        result[key] = value if size <= room else None
        room -= size if size <= room else 0
    return result
