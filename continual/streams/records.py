"""Bytes to records: lines, the elements of an array, objects one after another, rows of a table.

Divides the bytes into records, holds the limit on their size, and turns a record's bytes into an
object. Leaves the source of the bytes to ``sources``, and their meaning to ``readers``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NoReturn, Protocol

from continual.errors import RequestError, StreamChanged, StreamError, StreamReplaced
from continual.requests import named
from continual.streams.kinds import BLANK, BOM

QUARANTINED_BYTES_MAX = 1000  # kept of a record that is too long
LIST_KEYS = frozenset(
    {"messages", "forms", "rephrases", "held_out_rephrases", "locality", "portability"}
)
"""Keys whose cell in a table is JSON if it begins like a list or an object."""
FILLED_KEYS = frozenset({"prompt", "target_new", "answer"})

_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
_CLOSING = {b"[": b"]", b"{": b"}"}


@dataclass(frozen=True)
class RawRecord:
    """The bytes of one record, not yet parsed; ``reason`` says why they cannot be."""

    number: int
    raw: bytes
    digest: bytes  # sha256 of the whole record, also where ``raw`` is only its beginning
    reason: str | None = None


class RecordSource(Protocol):
    """Records one by one; a patient caller waits for more if the source may still grow."""

    def next(self, *, patient: bool) -> RawRecord | None:
        """Return the next record, or ``None`` at the end."""

    def parsed(self, raw: bytes) -> dict[str, object]:
        """Return the object in a record's bytes. Raises RequestError."""


class Chunks(Protocol):
    """A source of lines."""

    name: str

    def chunk(self, *, patient: bool) -> bytes:
        """Return the next bytes, up to a line's end; empty if no more will come."""


@dataclass
class _LineBuffer:
    """One line as it arrives: hashed whole; of a line over `bytes_max` only the start is kept."""

    bytes_max: int
    length: int = 0
    kept: bytearray = field(default_factory=bytearray)
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, content: bytes) -> None:
        self.digest.update(content)
        self.length += len(content)
        self.kept += content
        if self.length > self.bytes_max:
            del self.kept[QUARANTINED_BYTES_MAX:]

    def is_blank(self) -> bool:
        return self.length <= self.bytes_max and is_blank(bytes(self.kept))

    def record(self, number: int) -> RawRecord:
        reason = too_long(self.length, self.bytes_max)
        return RawRecord(number, bytes(self.kept), self.digest.digest(), reason)


@dataclass
class JsonLines:
    """The records of JSON Lines; blank lines are no records, but count in the numbers."""

    tail: Chunks
    bytes_max: int
    number: int = 0
    torn: bool = False  # the last line was given without its newline

    def next(self, *, patient: bool) -> RawRecord | None:
        """Return the next line that is not blank."""
        while line := self.line(patient):
            if not line.is_blank():
                return line.record(self.number)
        return None

    def parsed(self, raw: bytes) -> dict[str, object]:
        """Return the JSON object on a line. Raises RequestError."""
        return parsed_object(raw)

    def line(self, patient: bool) -> _LineBuffer | None:
        """Return the next line, blank or not; of a file that was replaced, also a line without an
        end. Raises StreamReplaced behind it."""
        line = _LineBuffer(self.bytes_max)
        try:
            while chunk := self._chunk(patient):
                line.add(chunk.removesuffix(b"\n"))
                if chunk.endswith(b"\n"):
                    self.number += 1
                    return line
        except StreamReplaced:
            if not line.length:
                raise
            self.number += 1
            return line
        if patient or not line.length:
            return None
        self.torn = True
        self.number += 1
        return line

    def _chunk(self, patient: bool) -> bytes:
        chunk = self.tail.chunk(patient=patient)
        if not (self.torn and chunk):
            return chunk
        if chunk != b"\n":
            raise StreamChanged(
                f"line {self.number} of the stream {self.tail.name} has grown since it was "
                "read: end every record with a newline, and start again on the file as it is now"
            )
        self.torn = False
        return self._chunk(patient)


class DelimitedTable:
    """The rows of a table (CSV, TSV) under its header. A quoted cell may go over several lines.

    A record's bytes are the header's line and the row's, so that they can be parsed alone.
    """

    def __init__(self, tail: Chunks, bytes_max: int, delimiter: str) -> None:
        self._lines = JsonLines(tail, bytes_max)
        self._bytes_max = bytes_max
        self._delimiter = delimiter
        self._header: bytes | None = None

    def next(self, *, patient: bool) -> RawRecord | None:
        """Return the next row that is not empty, numbered by its first line."""
        if self._header is None:
            header = self._lines.next(patient=patient)
            if header is None:
                return None
            self._header = header.raw.removeprefix(BOM).rstrip(b"\r")
        while True:
            number = self._lines.number + 1
            row = self._row(patient)
            if row is None:
                return None
            if not row.kept.strip(BLANK + self._delimiter.encode() + b'"'):
                continue
            line = _LineBuffer(self._bytes_max + len(self._header) + 1)
            line.add(self._header + b"\n")
            line.add(bytes(row.kept))
            reason = too_long(row.length, self._bytes_max)
            return RawRecord(number, bytes(line.kept), line.digest.digest(), reason)

    def _row(self, patient: bool) -> _LineBuffer | None:
        """Return the lines of a row: one, or as many as its quoted cells go over."""
        row = _LineBuffer(self._bytes_max)
        is_quoted = False
        while (line := self._lines.line(patient)) is not None:
            is_quoted = _ends_quoted(bytes(line.kept), self._delimiter, is_quoted)
            row.add(bytes(line.kept) + (b"\n" if is_quoted else b""))
            row.length += line.length - len(line.kept)
            if not is_quoted:
                return row
        return row if row.length else None

    def parsed(self, raw: bytes) -> dict[str, object]:
        """Return the row by its header, without empty cells unless their key is in FILLED_KEYS; a
        chat has no prompt beside it. Raises RequestError."""
        try:
            text = io.StringIO(raw.decode("utf-8-sig"), newline="")
            rows = list(csv.reader(text, delimiter=self._delimiter, strict=True))
        except UnicodeDecodeError as error:
            raise RequestError(
                f"not UTF-8: {error.reason} at byte {error.start}; save the table as UTF-8"
            ) from None
        except csv.Error as error:
            raise RequestError(f"not a row of a table: {error}") from None
        if len(rows) != 2:
            raise RequestError("not a row of a table: a quote in it is not closed")
        columns = [column.strip() for column in rows[0]]
        if len(rows[1]) > len(columns):
            raise RequestError(
                f"has {len(rows[1])} cells, more than the {len(columns)} columns: put a cell that "
                f"holds {self._delimiter!r} in double quotes"
            )
        cells = dict(zip(columns, rows[1], strict=False))
        is_chat = bool(cells.get("messages", "").strip())
        pairs = [
            (key, cell)
            for key, cell in zip(columns, rows[1], strict=False)
            if _is_said(key, cell) and not (is_chat and key == "prompt" and not cell.strip())
        ]
        return _unique_keys([(key, _cell(key, cell)) for key, cell in pairs])


def _is_said(key: str, cell: str) -> bool:
    return bool(cell.strip()) or key in FILLED_KEYS


def _cell(key: str, cell: str) -> object:
    if key not in LIST_KEYS or not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        return json.loads(cell, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{named(key)}: not JSON: {error}") from None


def _ends_quoted(line: bytes, delimiter: str, is_quoted: bool) -> bool:
    """Tell whether a quoted cell goes on behind a line. A quote opens only where a cell begins."""
    if b'"' not in line:
        return is_quoted
    mark, place = ord(delimiter), 0
    begins = not is_quoted
    while place < len(line):
        letter = line[place]
        if is_quoted and letter == 0x22:
            is_doubled = line[place + 1 : place + 2] == b'"'
            place += int(is_doubled)
            is_quoted = is_doubled
        elif not is_quoted:
            is_quoted = begins and letter == 0x22
            begins = letter == mark
        place += 1
    return is_quoted


class Elements:
    """Records of a whole file: the elements of an array, or objects one after another. The
    structure of all is checked before the first is given."""

    def __init__(self, data: bytes, places: list[slice], bytes_max: int) -> None:
        self._data = data
        self._bytes_max = bytes_max
        self._places = enumerate(places, start=1)

    def next(self, *, patient: bool) -> RawRecord | None:
        """Return the next element; None at the end."""
        number, place = next(self._places, (0, slice(0)))
        if not number:
            return None
        raw = self._data[place].strip(BLANK)
        reason = too_long(len(raw), self._bytes_max)
        content = raw if reason is None else raw[:QUARANTINED_BYTES_MAX]
        return RawRecord(number, content, hashlib.sha256(raw).digest(), reason)

    def parsed(self, raw: bytes) -> dict[str, object]:
        """Return the JSON object of an element. Raises RequestError."""
        return parsed_object(raw)


def whole(name: str, file: BinaryIO, bytes_max: int) -> bytes:
    """Read all of a file. Raises StreamError if it has more than `bytes_max` bytes."""
    data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise StreamError(
            f"the stream {name} is one JSON array or object of more than {bytes_max} bytes: "
            "write one record to a line, or raise array_bytes_max under [stream] in cedit.toml"
        )
    return data


def array_places(name: str, data: bytes) -> Iterator[slice]:
    """Yield the places of the outermost array's elements, found by quotes and brackets alone.
    Raises StreamError for broken JSON."""
    stack: list[bytes] = []
    begin = 0
    for token in _STRUCTURE.finditer(data):
        mark, place = token.group()[:1], token.start()
        if mark in _CLOSING:
            stack.append(mark)
            begin = token.end() if len(stack) == 1 else begin
        elif mark in b"]}":
            if mark != _CLOSING[stack.pop()]:
                _broken(name, place, "a bracket closes what another kind has opened")
            if not stack:
                yield from _last_element(name, data, begin, place)
                return
        elif mark == b"," and len(stack) == 1:
            if is_blank(data[begin:place]):
                _broken(name, place, "there is no record before the comma")
            yield slice(begin, place)
            begin = token.end()
        elif token.group() == b'"':
            _broken(name, place, "a text that begins there has no end")
    _broken(name, len(data), "it ends before its closing bracket")


def object_places(name: str, data: bytes) -> Iterator[slice]:
    """Yield the places of objects that follow each other, each over several lines, found as above.
    Raises StreamError for broken JSON."""
    stack: list[bytes] = []
    begin = 0
    for token in _STRUCTURE.finditer(data):
        mark, place = token.group()[:1], token.start()
        if not stack and (mark != b"{" or not is_blank(data[begin:place])):
            _broken(name, place, "between the objects stands something else")
        if mark in _CLOSING:
            begin = begin if stack else place
            stack.append(mark)
        elif mark in b"]}":
            if mark != _CLOSING[stack.pop()]:
                _broken(name, place, "a bracket closes what another kind has opened")
            if not stack:
                yield slice(begin, token.end())
                begin = token.end()
        elif token.group() == b'"':
            _broken(name, place, "a text that begins there has no end")
    if stack or not is_blank(data[begin:]):
        _broken(name, len(data), "its last object has no end")


def _last_element(name: str, data: bytes, begin: int, end: int) -> Iterator[slice]:
    """Yield the element before the closing bracket at ``end``, after which nothing may come."""
    if not is_blank(data[begin:end]):
        yield slice(begin, end)
    elif data[:begin].rstrip(BLANK).endswith(b","):
        _broken(name, end, "there is no record after the last comma")
    if not is_blank(data[end + 1 :]):
        _broken(name, end + 1, "something follows the closing bracket")


def _broken(name: str, place: int, cause: str) -> NoReturn:
    raise StreamError(
        f"the stream {name} is broken JSON (an array, or objects over several lines) at byte "
        f"{place}: {cause}. Mend the file, or write one record to a line"
    )


def is_blank(data: bytes) -> bool:
    """Tell whether the data is only whitespace."""
    return not data.removeprefix(BOM).strip(BLANK)


def too_long(length: int, bytes_max: int) -> str | None:
    """Return the reason against a record of more bytes than are allowed; None if it fits."""
    if length <= bytes_max:
        return None
    return (
        f"the record has {length} bytes, more than the {bytes_max} allowed: shorten it, or raise "
        "line_bytes_max under [stream] in cedit.toml"
    )


def parsed_object(raw: bytes) -> dict[str, object]:
    """Parse the JSON object in ``raw`` strictly. Raises ``RequestError`` for anything else."""
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


Places = Callable[[str, bytes], Iterator[slice]]
