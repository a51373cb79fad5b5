"""Streams: requests in their order, from a file, a growing file or standard input.

Knows where one record ends and the next begins, how large it may be, and how to come back to the
place where reading stopped. A record that cannot be read is an item with a reason and never an
exception. Leaves what a record means to ``readers``, and what becomes of a quarantined item to
the pipeline.

Items are chained: the rolling hash of an item covers the bytes of all items up to it, so a stream
whose past was changed is noticed when it is resumed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

from continual.errors import RequestError, StreamChanged, StreamError
from continual.readers import read_record
from continual.requests import Limits, Request, named

STANDARD_INPUT = "-"
ROLLING_START = hashlib.sha256().digest_size * "00"  # the chain before the first item
ARRAY_BYTES_MAX = 256_000_000
QUARANTINED_BYTES_MAX = 1000  # what is kept of a record that is too long
POLL_SECONDS = 0.5

_CHUNK_BYTES = 65_536
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"  # JSON's whitespace
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
_CLOSING = {b"[": b"]", b"{": b"}"}


@dataclass(frozen=True)
class Item:
    """One record of a stream: its requests, or the reason why it has none."""

    number: int  # line of the file, or place in the array; both from 1
    raw: bytes
    requests: tuple[Request, ...]
    reason: str | None
    position: int  # items consumed so far, this one included
    rolling: str  # hexadecimal hash chain up to and including this item

    def __post_init__(self) -> None:
        assert bool(self.requests) == (self.reason is None)

    def to_quarantine(self) -> dict[str, object]:
        """The item as a line of the quarantine file; bytes that are no text are in base64."""
        entry: dict[str, object] = {"line": self.number, "reason": self.reason}
        try:
            return {**entry, "raw": self.raw.decode("utf-8")}
        except UnicodeDecodeError:
            return {**entry, "raw_base64": base64.b64encode(self.raw).decode("ascii")}


@dataclass(frozen=True)
class Record:
    """The bytes of one record, not yet understood; ``reason`` says why they cannot be."""

    number: int
    raw: bytes
    digest: bytes  # sha256 of the whole record, also where ``raw`` is only its beginning
    reason: str | None = None


class Records(Protocol):
    """Records one by one; a patient caller waits for more where the source may still grow."""

    def next(self, *, patient: bool) -> Record | None:
        """The next record, or ``None`` at the end."""


@dataclass(frozen=True)
class Stream:
    """An ordered source of requests; every iteration starts from its beginning.

    Standard input can be iterated only once. Setting ``stop`` ends the iteration after the
    current item; a read of standard input that blocks is not interrupted by it.
    """

    name: str  # absolute path, or "-"
    limits: Limits = field(default_factory=Limits)
    follow: bool = False
    poll_seconds: float = POLL_SECONDS
    stop: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[Item]:
        return self.after(0, ROLLING_START)

    def after(self, position: int, rolling: str) -> Iterator[Item]:
        """The items after the first ``position`` ones, which must give the chain ``rolling``."""
        with self._opened() as file:
            records = self._records(file)
            if self._skip(records, position) != rolling:
                raise StreamChanged(self._changed(position))
            link = bytes.fromhex(rolling)
            while not self.stop.is_set():
                record = records.next(patient=self.follow)
                if record is None or self.stop.is_set():
                    return
                position, link = position + 1, _chained(link, record)
                yield _understood(record, position, link.hex())

    def count(self) -> int | None:
        """How many records there are; ``None`` where only reading to the end would tell."""
        if self.follow or not Path(self.name).is_file():
            return None
        with self._opened() as file:
            records = self._records(file)
            return sum(1 for _ in iter(lambda: records.next(patient=False), None))

    def _skip(self, records: Records, position: int) -> str | None:
        """The chain after ``position`` records, or ``None`` where there are not as many."""
        link = bytes.fromhex(ROLLING_START)
        for _ in range(position):
            record = records.next(patient=False)
            if record is None:
                return None
            link = _chained(link, record)
        return link.hex()

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        try:
            if self.name == STANDARD_INPUT:
                yield sys.stdin.buffer
            else:
                with Path(self.name).open("rb") as file:
                    yield file
        except OSError as error:
            raise _unreadable(self.name, error) from error

    def _records(self, file: BinaryIO) -> Records:
        """The records of an array where the first byte that is not blank opens one, else lines."""
        tail = _Tail(self, file)
        opening = deque(_opening(tail))
        if not opening or not opening[-1].removeprefix(_BOM).lstrip(_BLANK).startswith(b"["):
            return _Lines(tail, opening, self.limits.line_bytes_max)
        if self.follow:
            raise StreamError(
                f"the stream {self.name} is a JSON array, which cannot be followed: "
                "write one record to a line"
            )
        return _Array(self.name, _whole(self.name, opening, file), self.limits.line_bytes_max)

    def _changed(self, position: int) -> str:
        return (
            f"the stream {self.name} is not the one that was read before: its first {position} "
            "records have changed or are gone. Restore them, or apply the file under another name"
        )


def open_stream(
    source: str,
    *,
    limits: Limits | None = None,
    follow: bool = False,
    poll_seconds: float = POLL_SECONDS,
    stop: threading.Event | None = None,
) -> Stream:
    """The stream in the file ``source``, or on standard input for ``-``.

    With ``follow`` the end of the file is waited at, looking every ``poll_seconds`` until
    ``stop`` is set. Raises ``StreamError`` where there is no such file.
    """
    return Stream(
        name=STANDARD_INPUT if source == STANDARD_INPUT else _existing(source),
        limits=limits or Limits(),
        follow=follow and source != STANDARD_INPUT,
        poll_seconds=poll_seconds,
        stop=stop or threading.Event(),
    )


def resume(stream: Stream, position: int, rolling: str) -> Iterator[Item]:
    """The items after the first ``position`` ones.

    Raises ``StreamChanged`` where the items before are no longer those that gave ``rolling``.
    """
    return stream.after(position, rolling)


def _existing(source: str) -> str:
    path = Path(source).absolute()
    if not path.exists():
        raise StreamError(f"the stream {path} does not exist: check the path")
    if path.is_dir():
        raise StreamError(f"the stream {path} is a folder: name a file in it")
    return str(path)


def _unreadable(name: str, error: OSError) -> StreamError:
    return StreamError(f"the stream {name} cannot be read: {error.strerror or error}")


# --- bytes to records ---------------------------------------------------------------------------


@dataclass
class _Tail:
    """The end of a file, and what to do there."""

    stream: Stream
    file: BinaryIO

    def chunk(self, *, patient: bool) -> bytes:
        """The next bytes, up to a line's end; empty at the end of what there is to come."""
        while True:
            chunk = self.file.readline(_CHUNK_BYTES)
            if chunk or not patient:
                return chunk
            self._check_size()
            if self.stream.stop.wait(self.stream.poll_seconds):
                return b""

    def _check_size(self) -> None:
        if self.file.seekable() and os.fstat(self.file.fileno()).st_size < self.file.tell():
            raise StreamChanged(
                f"the stream {self.stream.name} was cut short while it was followed: "
                "start again on the file as it is now"
            )


def _opening(tail: _Tail) -> Iterator[bytes]:
    """The chunks up to the first that is not blank."""
    while chunk := tail.chunk(patient=False):
        yield chunk
        if chunk.removeprefix(_BOM).strip(_BLANK):
            return


@dataclass
class _Line:
    """One line as it arrives: hashed whole, held only as far as it may be long."""

    bytes_max: int
    length: int = 0
    kept: bytearray = field(default_factory=bytearray)
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, chunk: bytes) -> None:
        content = chunk.removesuffix(b"\n")
        self.digest.update(content)
        self.length += len(content)
        self.kept += content
        if self.length > self.bytes_max:
            del self.kept[QUARANTINED_BYTES_MAX:]

    def is_blank(self) -> bool:
        return self.length <= self.bytes_max and _is_blank(bytes(self.kept))

    def record(self, number: int) -> Record:
        reason = _too_long(self.length, self.bytes_max)
        return Record(number, bytes(self.kept), self.digest.digest(), reason)


@dataclass
class _Lines:
    """The records of JSON Lines; blank lines are none, but are counted."""

    tail: _Tail
    opening: deque[bytes]
    bytes_max: int
    number: int = 0
    torn: bool = False  # the last line was given without its newline

    def next(self, *, patient: bool) -> Record | None:
        while line := self._line(patient):
            self.number += 1
            if not line.is_blank():
                return line.record(self.number)
        return None

    def _line(self, patient: bool) -> _Line | None:
        line = _Line(self.bytes_max)
        while chunk := self._chunk(patient):
            line.add(chunk)
            if chunk.endswith(b"\n"):
                return line
        if patient or not line.length:
            return None
        self.torn = True
        return line

    def _chunk(self, patient: bool) -> bytes:
        chunk = self.opening.popleft() if self.opening else self.tail.chunk(patient=patient)
        if not (self.torn and chunk):
            return chunk
        if chunk != b"\n":
            raise StreamChanged(
                f"line {self.number} of the stream {self.tail.stream.name} has grown since it was "
                "read: end every record with a newline, and start again on the file as it is now"
            )
        self.torn = False
        return self._chunk(patient)


class _Array:
    """The records of one JSON array; its structure is whole before the first of them is given."""

    def __init__(self, name: str, data: bytes, bytes_max: int) -> None:
        self.data = data
        self.bytes_max = bytes_max
        self.elements = enumerate(list(_elements(name, data)), start=1)

    def next(self, *, patient: bool) -> Record | None:
        number, place = next(self.elements, (0, slice(0)))
        if not number:
            return None
        raw = self.data[place].strip(_BLANK)
        reason = _too_long(len(raw), self.bytes_max)
        kept = raw if reason is None else raw[:QUARANTINED_BYTES_MAX]
        return Record(number, kept, hashlib.sha256(raw).digest(), reason)


def _whole(name: str, opening: deque[bytes], file: BinaryIO) -> bytes:
    begin = b"".join(opening)
    data = begin + file.read(ARRAY_BYTES_MAX + 1 - len(begin))
    if len(data) > ARRAY_BYTES_MAX:
        raise StreamError(
            f"the stream {name} is a JSON array of more than {ARRAY_BYTES_MAX} bytes: "
            "write one record to a line"
        )
    return data


def _elements(name: str, data: bytes) -> Iterator[slice]:
    """Where the elements of the outermost array stand, found by quotes and brackets alone."""
    opened: list[bytes] = []
    begin = 0
    for token in _STRUCTURE.finditer(data):
        mark, place = token.group()[:1], token.start()
        if mark in _CLOSING:
            opened.append(mark)
            begin = token.end() if len(opened) == 1 else begin
        elif mark in b"]}":
            if mark != _CLOSING[opened.pop()]:
                _broken(name, place, "a bracket closes what another kind has opened")
            if not opened:
                yield from _last_element(name, data, begin, place)
                return
        elif mark == b"," and len(opened) == 1:
            if _is_blank(data[begin:place]):
                _broken(name, place, "there is no record before the comma")
            yield slice(begin, place)
            begin = token.end()
        elif token.group() == b'"':
            _broken(name, place, "a text that begins there has no end")
    _broken(name, len(data), "it ends before its closing bracket")


def _last_element(name: str, data: bytes, begin: int, end: int) -> Iterator[slice]:
    """The element before the closing bracket at ``end``, after which nothing may come."""
    if not _is_blank(data[begin:end]):
        yield slice(begin, end)
    elif data[:begin].rstrip(_BLANK).endswith(b","):
        _broken(name, end, "there is no record after the last comma")
    if not _is_blank(data[end + 1 :]):
        _broken(name, end + 1, "something follows the closing bracket")


def _broken(name: str, place: int, cause: str) -> NoReturn:
    raise StreamError(
        f"the stream {name} is a broken JSON array at byte {place}: {cause}. "
        "Mend the file, or write one record to a line"
    )


def _is_blank(data: bytes) -> bool:
    return not data.removeprefix(_BOM).strip(_BLANK)


def _too_long(length: int, bytes_max: int) -> str | None:
    if length <= bytes_max:
        return None
    return f"the record has {length} bytes, more than the {bytes_max} allowed"


def _chained(link: bytes, record: Record) -> bytes:
    return hashlib.sha256(link + record.digest).digest()


# --- records to items ---------------------------------------------------------------------------


def _understood(record: Record, position: int, rolling: str) -> Item:
    requests: tuple[Request, ...] = ()
    reason = record.reason
    if reason is None:
        try:
            requests = tuple(read_record(_parsed(record.raw)))
        except RequestError as error:
            reason = error.reason
    return Item(record.number, record.raw, requests, reason, position, rolling)


def _parsed(raw: bytes) -> dict[str, object]:
    """The JSON object in ``raw``, read strictly; raises ``RequestError`` where it is none."""
    try:
        text = raw.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise RequestError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:
        raise RequestError("not readable: a number in it has too many digits") from None
    except RecursionError:
        raise RequestError("not readable: it is nested too deeply") from None
    if not isinstance(value, dict):
        raise RequestError("a record must be a JSON object")
    return value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RequestError(f"the key {named(twice)} occurs more than once")
    return unique


def _no_constant(constant: str) -> NoReturn:
    raise RequestError(f"not JSON: {constant} is not a number that JSON has")
