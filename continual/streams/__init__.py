"""Streams: requests in their order, from a file, a growing file, a pipe or standard input.

``sources`` has the bytes, ``kinds`` tells the kind of file, ``records`` divides it into records.
This module comes back to the place where reading stopped. A record that cannot be read is an item
with a reason and never an exception; a file of another kind is refused as a whole. Leaves the
meaning of a record to ``readers``, and the fate of a quarantined item to the pipeline.

Items are chained: the rolling hash of an item covers the bytes of all items up to it, so that
resuming a stream notices a changed past. A stream has a short name wherever its file lies: the
file's own name and its first record's hash.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from continual.errors import RequestError, StreamChanged, StreamError
from continual.pictures.records import PictureBorder
from continual.readers import is_known, read_record, unknown_keys
from continual.requests import Limits, Request
from continual.streams.kinds import ARRAY, OBJECTS, TABLE, layout
from continual.streams.records import (
    DelimitedTable,
    Elements,
    JsonLines,
    Places,
    RawRecord,
    RecordSource,
    array_places,
    object_places,
    whole,
)
from continual.streams.sources import STANDARD_INPUT, Source, Tail, existing, has_past, opened

__all__ = ["ROLLING_START", "STANDARD_INPUT", "Item", "Stream", "open_stream", "resume"]

ROLLING_START = hashlib.sha256().digest_size * "00"  # the chain before the first item
POLL_SECONDS = 0.5
NAME_HEX_DIGITS = 12  # of the first record's hash, in a stream's short name
LOOKED_AT_MAX = 20  # records that are looked at before a whole stream is refused


@dataclass(frozen=True)
class Item:
    """One record of a stream: its requests, or the reason why it has none."""

    number: int  # line of the file, or place in the array; both from 1
    raw: bytes
    requests: tuple[Request, ...]
    reason: str | None
    position: int  # items consumed so far, this one included
    rolling: str  # hexadecimal hash chain up to and including this item
    stream: str | None = None  # the name under which a history keeps the place; None: it keeps none
    is_again: bool = False  # given before this history's place in the stream

    def __post_init__(self) -> None:
        assert bool(self.requests) == (self.reason is None)

    @property
    def unknown(self) -> tuple[str, ...]:
        """The keys that the record's format does not have."""
        return tuple(dict.fromkeys(key for request in self.requests for key in request.extra))

    def to_quarantine(self) -> dict[str, object]:
        """Return the item as a line of the quarantine file; bytes that are no text in base64."""
        entry: dict[str, object] = {"line": self.number, "reason": self.reason}
        try:
            return {**entry, "raw": self.raw.decode("utf-8")}
        except UnicodeDecodeError:
            return {**entry, "raw_base64": base64.b64encode(self.raw).decode("ascii")}


@dataclass(frozen=True)
class Stream:
    """An ordered source of requests; every iteration starts from its beginning.

    A stream without a past can be iterated only once. Setting ``stop`` ends the iteration after the
    current item; it does not interrupt a blocking read of a pipe.
    """

    name: str  # absolute path, or "-"
    limits: Limits = field(default_factory=Limits)
    follow: bool = False
    poll_seconds: float = POLL_SECONDS
    stop: threading.Event = field(default_factory=threading.Event)
    keys: Mapping[str, str] = field(default_factory=dict)  # of cedit's own, the record's own
    has_past: bool = True
    pictures: PictureBorder | None = None  # takes in the pictures of records; None: there are none

    def __iter__(self) -> Iterator[Item]:
        return self.after(0, ROLLING_START)

    def after(self, position: int, rolling: str) -> Iterator[Item]:
        """Yield the items after the first ``position`` ones. Raises StreamChanged if these do not
        give the chain ``rolling``."""
        with self._records(self._knows) as records:
            first_link, last_link = self._skip(records, position)
            if last_link != rolling:
                raise StreamChanged(self._changed(position))
            name = None if first_link is None else self._short(first_link)
            if not position and self._is_looked_into:
                records = self._recognised(records)
            link = bytes.fromhex(rolling)
            while not self.stop.is_set():
                record = records.next(patient=self.follow)
                if record is None or self.stop.is_set():
                    return
                position, link = position + 1, _chained(link, record)
                name = name or self._short(link.hex())
                yield self._understood(records, record, (position, link.hex(), name))

    def before(self, position: int) -> Iterator[Item]:
        """Yield the first ``position`` items once more."""
        again = self.__class__(self.name, self.limits, keys=self.keys, pictures=self.pictures)
        for item in again:
            if item.position > position or self.stop.is_set():
                return
            yield item

    def objects(
        self, knows: Callable[[Mapping[str, object]], bool]
    ) -> Iterator[tuple[int, dict[str, object]]]:
        """Yield the objects in a file of other records than requests, each with its number.

        ``knows`` recognises a table's header by its columns. Raises StreamError, and RequestError
        with the record's number for a record that is no object.
        """
        with self._records(knows) as records:
            while (record := records.next(patient=False)) is not None:
                try:
                    if record.reason is not None:
                        raise RequestError(record.reason)
                    yield record.number, records.parsed(record.raw)
                except RequestError as error:
                    raise RequestError(f"{self.name}, line {record.number}: {error}") from None

    def count(self) -> int | None:
        """Count the records; ``None`` for a stream that is followed or can be read only once."""
        if self.follow or not self.has_past:
            return None
        with self._records(self._knows) as records:
            return sum(1 for _ in iter(lambda: records.next(patient=False), None))

    @property
    def folder(self) -> Path | None:
        """The folder of the stream's file, where relative paths in it begin; None for a pipe."""
        return Path(self.name).parent if self.has_past else None

    def short_name(self) -> str | None:
        """Return the name under which a history keeps the place; None without any record, or a
        past."""
        if not self.has_past:
            return None
        with self._records(self._knows) as records:
            first_link, _ = self._skip(records, 1)
        return None if first_link is None else self._short(first_link)

    def _short(self, first: str) -> str | None:
        return f"{Path(self.name).name}#{first[:NAME_HEX_DIGITS]}" if self.has_past else None

    def _knows(self, record: Mapping[str, object]) -> bool:
        return is_known(record, self.keys)

    @property
    def _is_looked_into(self) -> bool:
        """True if the file is whole, so that more than its first record can be looked at."""
        return self.has_past and not self.follow

    def _skip(self, records: RecordSource, position: int) -> tuple[str | None, str | None]:
        """Return the chain after the first record, and after ``position`` ones; ``None`` if there
        are fewer."""
        first_link: str | None = None
        link = bytes.fromhex(ROLLING_START)
        for _ in range(position):
            record = records.next(patient=False)
            if record is None:
                return first_link, None
            link = _chained(link, record)
            first_link = first_link or link.hex()
        return first_link, link.hex()

    @contextmanager
    def _records(self, knows: Callable[[Mapping[str, object]], bool]) -> Iterator[RecordSource]:
        """Open the source, and yield its records by its kind. Raises StreamError for a kind that is
        not read."""
        with opened(self.name) as source:
            yield self._laid_out(source, knows)

    def _laid_out(
        self, source: Source, knows: Callable[[Mapping[str, object]], bool]
    ) -> RecordSource:
        form = layout(self.name, source.beginning, knows, is_whole=self._is_looked_into)
        if self.follow and (source.is_compressed or form.kind in (ARRAY, OBJECTS)):
            kind = "compressed" if source.is_compressed else "a JSON array"
            raise StreamError(
                f"the stream {self.name} is {kind}, which cannot be followed: "
                "write one record to a line"
            )
        bytes_max = self.limits.line_bytes_max
        if form.kind in (ARRAY, OBJECTS):
            places: Places = array_places if form.kind == ARRAY else object_places
            data = whole(self.name, source.file, self.limits.array_bytes_max)
            return Elements(data, list(places(self.name, data)), bytes_max)
        tail = Tail(self.name, source.file, self.poll_seconds, self.stop)
        if form.kind == TABLE:
            return DelimitedTable(tail, bytes_max, form.delimiter)
        return JsonLines(tail, bytes_max)

    def _recognised(self, records: RecordSource) -> RecordSource:
        """Return the same records. Raises StreamError if the first ones have objects, and none of a
        known format: then nothing of the file could be applied."""
        ahead = _LookedAt(records)
        objects = list(ahead.objects())
        if objects and not any(map(self._knows, objects)):
            raise StreamError(
                f"the stream {self.name}: {unknown_keys(objects[0], self.keys)}. "
                "Nothing of it was applied"
            )
        return ahead

    def _understood(
        self, records: RecordSource, record: RawRecord, place: tuple[int, str, str | None]
    ) -> Item:
        requests: tuple[Request, ...] = ()
        reason = record.reason
        if reason is None:
            try:
                fields = records.parsed(record.raw)
                fields = fields if self.pictures is None else self.pictures.of(fields)
                requests = tuple(read_record(fields, self.keys))
            except RequestError as error:
                reason = error.reason
        return Item(record.number, record.raw, requests, reason, *place)

    def _changed(self, position: int) -> str:
        return (
            f"the stream {self.name} is not the one that was read before: its first {position} "
            "records have changed or are gone: restore them, or read it from its beginning"
        )


def open_stream(
    source: str,
    *,
    limits: Limits | None = None,
    follow: bool = False,
    poll_seconds: float = POLL_SECONDS,
    stop: threading.Event | None = None,
    keys: Mapping[str, str] | None = None,
) -> Stream:
    """Return the stream in the file ``source``, or on standard input for ``-``.

    With ``follow`` the stream waits at the end of the file, and looks every ``poll_seconds`` until
    ``stop`` is set. ``keys`` maps cedit's own keys to the keys of foreign records. Raises
    ``StreamError`` if there is no such file.
    """
    name = existing(source)
    return Stream(
        name=name,
        limits=limits or Limits(),
        follow=follow and name != STANDARD_INPUT,
        poll_seconds=poll_seconds,
        stop=stop or threading.Event(),
        keys=keys or {},
        has_past=has_past(name),
    )


def resume(stream: Stream, position: int, rolling: str) -> Iterator[Item]:
    """Yield the items after the first ``position`` ones.

    Raises ``StreamChanged`` if the items before no longer give ``rolling``.
    """
    return stream.after(position, rolling)


class _LookedAt:
    """Records that can be looked at in advance, before they are given."""

    def __init__(self, records: RecordSource) -> None:
        self._records = records
        self._ahead: deque[RawRecord] = deque()

    def objects(self) -> Iterator[dict[str, object]]:
        """Yield the objects among the first LOOKED_AT_MAX records."""
        while len(self._ahead) < LOOKED_AT_MAX:
            record = self._records.next(patient=False)
            if record is None:
                return
            self._ahead.append(record)
            try:
                if record.reason is None:
                    yield self.parsed(record.raw)
            except RequestError:
                continue

    def next(self, *, patient: bool) -> RawRecord | None:
        """Return the next record; None at the end."""
        return self._ahead.popleft() if self._ahead else self._records.next(patient=patient)

    def parsed(self, raw: bytes) -> dict[str, object]:
        """Return the object in a record's bytes. Raises RequestError."""
        return self._records.parsed(raw)


def _chained(link: bytes, record: RawRecord) -> bytes:
    return hashlib.sha256(link + record.digest).digest()
