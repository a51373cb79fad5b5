"""The quarantine file: lines of streams that are no requests, one JSON line each, for people.

Knows that a stream resumed after a crash brings its last lines again, and writes none twice. Each
line has a checksum of the rest of it, which readers are not shown. Reads `stream`, `position` and
`rolling` hash of a record, and leaves the rest of it to the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from store import canonical, durable
from store.errors import reading

CHECK = "check"  # the key of a line's checksum
CHECK_LENGTH = 16  # hexadecimal digits of a SHA-256


class Quarantine:
    """An append-only file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: set[bytes] | None = None

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield all records, oldest first; a line that is not whole is passed over."""
        for record, problem in self.lines():
            if record is not None and (problem is None or problem.harmless):
                yield record

    def lines(self) -> Iterator[tuple[dict[str, Any] | None, LineProblem | None]]:
        """Yield every line's record, as far as it can be read, and the line's problem."""
        with reading(self._path):
            if not self._path.exists():
                return
            with self._path.open("rb") as lines:
                for line in lines:
                    yield read_line(line)

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append durably each record whose (stream, position, rolling) is not there yet."""
        places = self._settled()
        pending: dict[bytes, bytes] = {}
        for record in records:
            place = _place(record)
            if place not in places:
                pending.setdefault(place, _line(record))
        if pending:
            durable.append_durably(self._path, b"".join(pending.values()))
            places.update(pending)

    def _settled(self) -> set[bytes]:
        """Sync the file, as a killed writer may not have, and return the places of its records."""
        if self._known is None:
            if self._path.exists():
                durable.sync_file_durably(self._path)
            self._known = {_place(record) for record in self.records()}
        return self._known


def _place(record: Mapping[str, Any]) -> bytes:
    return canonical.dumps([record.get(name) for name in ("stream", "position", "rolling")])


def _line(record: Mapping[str, Any]) -> bytes:
    return canonical.dumps({**record, CHECK: _checksum(record)}) + b"\n"


def _checksum(record: Mapping[str, Any]) -> str:
    return canonical.digest(canonical.dumps(dict(record)))[:CHECK_LENGTH]


class LineProblem(NamedTuple):
    """A line's problem; `harmless` marks a line that needs no repair, such as one that a crash cut
    off before it was acknowledged."""

    problem: str
    harmless: bool = False


def read_line(line: bytes) -> tuple[dict[str, Any] | None, LineProblem | None]:
    """Return the record in a line, as far as it can be read, and the line's problem."""
    if not line.endswith(b"\n"):
        return None, LineProblem("is an unfinished line", harmless=True)
    try:
        record = canonical.loads(line)
    except ValueError:
        # JSON has no zero bytes: they stand where a sector was not written when the power went.
        torn_line = LineProblem("was not wholly written", harmless=True)
        return None, torn_line if b"\0" in line else LineProblem("is not JSON")
    if not isinstance(record, dict):
        return None, LineProblem("is not a record")
    if CHECK not in record:
        return record, LineProblem("has no checksum: an earlier version wrote it", harmless=True)
    is_whole = record.pop(CHECK) == _checksum(record) and _line(record) == line
    return record, None if is_whole else LineProblem("its bytes are not those that were written")
