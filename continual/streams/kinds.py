"""Recognises kinds of files by their beginning, both readable and foreign ones.

Knows magic numbers, the header of a table, and the beginnings of YAML and XML. A foreign kind is
refused as a whole and by its name, before the first record. Leaves the records to ``records``.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import BinaryIO, cast

from continual.errors import StreamError
from continual.requests import named

BOM = b"\xef\xbb\xbf"
BLANK = b" \t\r\n"  # JSON's whitespace
LINES, ARRAY, OBJECTS, TABLE = "lines", "array", "objects", "table"
READ_KINDS = (
    "JSON Lines, a JSON array, CSV or TSV, each also compressed (gzip, bzip2, xz); by a pipe too"
)
COLUMNS_NAMED_MAX = 12
CHUNK_BYTES = 65_536  # read at a time

_AS_LINES = "write it as JSON Lines, one object to a line"
_AS_CSV = "save it as CSV (UTF-8)"
_UNPACKED = "unpack it first, or compress with gzip"
_FOREIGN = (
    (b"PK\x03\x04", "a ZIP archive or an Office file (Excel, Word)", _AS_CSV),
    (b"\xd0\xcf\x11\xe0", "an old Office file (Excel, Word)", _AS_CSV),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"PAR1", "a Parquet file", _AS_LINES),
    (b"ARROW1", "an Arrow file", _AS_LINES),
    (b"SQLite format 3\0", "an SQLite database", _AS_LINES),
    (b"%PDF", "a PDF", _AS_LINES),
    (b"\x89HDF", "an HDF5 file", _AS_LINES),
    (b"\x93NUMPY", "a NumPy array", _AS_LINES),
    (b"\x80\x02", "a pickle", _AS_LINES),
    (b"\x80\x03", "a pickle", _AS_LINES),
    (b"\x80\x04", "a pickle", _AS_LINES),
    (b"\x80\x05", "a pickle", _AS_LINES),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard", _UNPACKED),
    (b"\x04\x22\x4d\x18", "compressed by LZ4", _UNPACKED),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACKED),
)
_TAR = slice(257, 262)
_COMPRESSED: Mapping[bytes, Callable[..., object]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_YAML = re.compile(rb"(?:---|%YAML|-\s|-$)|[^\s{}\[\]\"',:<#]+:(?:\s|$)")
_DELIMITERS = (",", ";", "\t")
_TABLE_SUFFIXES = (".csv", ".tsv")

Knows = Callable[[Mapping[str, object]], bool]
"""A function that tells whether a record with these keys can be read."""


@dataclass(frozen=True)
class Layout:
    """The arrangement of the records in a file."""

    kind: str  # one of LINES, ARRAY, OBJECTS and TABLE
    delimiter: str = ","  # between the cells of a table


def decompressed(file: BinaryIO, beginning: bytes) -> BinaryIO | None:
    """Return the content of a file that is compressed in a known way; None for any other file."""
    for magic, open_it in _COMPRESSED.items():
        if beginning.startswith(magic):
            return cast(BinaryIO, open_it(file, "rb"))
    return None


def layout(name: str, beginning: bytes, knows: Knows, *, is_whole: bool) -> Layout:
    """Find the layout of a file's records. `is_whole`: more than its first line is known.

    Raises StreamError for a kind that is not read, and for a table whose columns are unknown.
    """
    _refuse_foreign(name, beginning)
    content = beginning.removeprefix(BOM).lstrip(BLANK)
    lines = content.splitlines()
    if not lines:
        return Layout(LINES)
    if content.startswith(b"["):
        return Layout(ARRAY)
    if content.startswith(b"{"):
        second = b"".join(lines[1:2]).lstrip(BLANK)
        is_pretty = is_whole and lines[0].rstrip() == b"{" and second.startswith(b'"')
        return Layout(OBJECTS if is_pretty else LINES)
    if (delimiter := _delimiter(lines[0], knows)) is not None:
        return Layout(TABLE, delimiter)
    if not _opens(lines):
        has_lines = len(lines) > 1 or len(beginning) < CHUNK_BYTES
        _refuse_text(name, lines, is_whole=is_whole and has_lines)
    return Layout(LINES)


def cells(line: bytes, delimiter: str) -> list[str]:
    """Return the cells of one row of a table; none if it is no text or no row."""
    try:
        return next(csv.reader([line.decode("utf-8-sig")], delimiter=delimiter, strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return []


def _opens(lines: list[bytes]) -> bool:
    """Tell whether an object begins on one of these lines."""
    return any(line.lstrip(BLANK).startswith(b"{") for line in lines)


def _delimiter(header: bytes, knows: Knows) -> str | None:
    """Return the delimiter of a header whose columns name readable records; None for any other."""
    for delimiter in _DELIMITERS:
        columns = [cell.strip() for cell in cells(header, delimiter)]
        if len(columns) > 1 and knows(dict.fromkeys(columns, "")):
            return delimiter
    return None


def _refuse_foreign(name: str, beginning: bytes) -> None:
    kinds = [(kind, remedy) for magic, kind, remedy in _FOREIGN if beginning.startswith(magic)]
    if beginning[_TAR] == b"ustar":
        kinds = [("a tar archive", _UNPACKED)]
    for kind, remedy in kinds:
        raise _refused(name, kind, remedy)


def _refuse_text(name: str, lines: list[bytes], *, is_whole: bool) -> None:
    """Raise StreamError for a text in which no record begins."""
    first_line = lines[0]
    if PurePath(name).suffix.lower() in _TABLE_SUFFIXES:
        raise _unknown_columns(name, first_line)
    if first_line.startswith(b"<"):
        raise _refused(name, "XML or HTML", _AS_LINES)
    if _YAML.match(first_line):
        raise _refused(name, "YAML", _AS_LINES)
    if is_whole:
        text = named(first_line.decode("utf-8", "replace"))
        raise _refused(name, f"text in which no JSON object begins (its first line: {text})", "")


def _unknown_columns(name: str, header: bytes) -> StreamError:
    tries = [cells(header, delimiter) for delimiter in _DELIMITERS]
    columns = max(tries, key=len)
    names = ", ".join(named(column.strip()) for column in columns[:COLUMNS_NAMED_MAX])
    return StreamError(
        f"the stream {name} is a table with the columns {names or 'that are no text'}, which no "
        "known format has. Nothing of it was applied. Say which column is which, with "
        "--keys prompt=COLUMN,target_new=COLUMN,subject=COLUMN, or under [stream.keys] in "
        "cedit.toml"
    )


def _refused(name: str, kind: str, remedy: str) -> StreamError:
    advice = f"{remedy}. " if remedy else ""
    return StreamError(
        f"the stream {name} is {kind}, which cedit does not read: {advice}"
        f"Streams are {READ_KINDS}. Nothing of it was applied"
    )
