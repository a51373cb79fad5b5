"""The quarantine file: what a stream held that is no request, one JSON line each, for people.

Knows that a stream resumed after a crash brings its last lines again, and writes none twice.
Leaves what a record says, other than its `stream`, `position` and `rolling` hash, to the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from store import canonical, durable


class Quarantine:
    """An append-only file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: set[bytes] | None = None

    def records(self) -> Iterator[dict[str, Any]]:
        """All records, oldest first; a line that is not whole is passed over."""
        if not self._path.exists():
            return
        with self._path.open("rb") as lines:
            for line in lines:
                record = _parsed(line)
                if record is not None:
                    yield record

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append durably those whose (stream, position, rolling) is not there yet."""
        known = self._settled()
        fresh: dict[bytes, bytes] = {}
        for record in records:
            place = _place(record)
            if place not in known:
                fresh.setdefault(place, canonical.dumps(dict(record)) + b"\n")
        if fresh:
            durable.append_durably(self._path, b"".join(fresh.values()))
            known.update(fresh)

    def _settled(self) -> set[bytes]:
        """The places of what is there for good: its writer may have been killed before a sync."""
        if self._known is None:
            if self._path.exists():
                durable.sync_file_durably(self._path)
            self._known = {_place(record) for record in self.records()}
        return self._known


def _place(record: Mapping[str, Any]) -> bytes:
    return canonical.dumps([record.get(name) for name in ("stream", "position", "rolling")])


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = canonical.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and line.endswith(b"\n") else None
