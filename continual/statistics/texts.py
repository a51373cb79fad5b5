"""Texts: documents to collect statistics over, from files.

Knows where one document ends and the next begins, and its largest size. Every iteration starts from
the beginning and holds one document at a time. A file that is no text ends the iteration with a
TextError that names the file and the line; nothing is skipped in silence but blank documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from continual.errors import CeditError

LINE_BYTES_MAX = 2**24
ARRAY_BYTES_MAX = 2**28
PARAGRAPH_BYTES_MAX = 2**20
"""A longer paragraph goes on as another document, from one line to the next."""
TEXT_KEYS = ("text", "content")

_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_HEAD_BYTES = 4096
_BOM = b"\xef\xbb\xbf"


class TextError(CeditError):
    """A file whose documents cannot be read."""


@dataclass(frozen=True)
class TextFiles:
    """The documents of some files, one after another.

    A file is JSON where its name ends so or where it begins as an object or an array of objects
    does: JSON Lines, or one array, of objects with a "text" or "content". Any other is plain text,
    whose documents are paragraphs, separated by blank lines.
    """

    paths: tuple[Path, ...]

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            yield from _documents(path)


def _documents(path: Path) -> Iterator[str]:
    """Yield the documents of one file. Raises TextError if there are none."""
    count = 0
    with _opened(path) as file:
        for text in _read(path, file):
            if text.strip():
                count += 1
                yield text
    if not count:
        raise TextError(f"The text file {path} holds no text: give one that does.")


def _read(path: Path, file: BinaryIO) -> Iterator[str]:
    head = file.read(_HEAD_BYTES).removeprefix(_BOM).lstrip()
    file.seek(0)
    is_array = head.startswith(b"[")
    if path.suffix.lower() not in _JSON_SUFFIXES and not _begins_as_json(head):
        return _paragraphs(path, file)
    return _array(path, file) if is_array else _json_lines(path, file)


def _begins_as_json(head: bytes) -> bool:
    """Tell whether the first bytes begin an object with a key, or an array of objects."""
    bracket, inside = head[:1], head[1:].lstrip()
    return (bracket == b"{" and inside.startswith(b'"')) or (
        bracket == b"[" and inside.startswith(b"{")
    )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise TextError(f"The text file {path} cannot be read: {error.strerror}.") from error


# --- plain text -----------------------------------------------------------------------------------


def _paragraphs(path: Path, file: BinaryIO) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for _, line in _lines(path, file):
        if lines and (not line.strip() or size + len(line) > PARAGRAPH_BYTES_MAX):
            yield "\n".join(lines)
            lines, size = [], 0
        if line.strip():
            lines.append(line)
            size += len(line)
    yield "\n".join(lines)


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers, without their ends."""
    number = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            _refuse(path, f"line {number}", f"has more than {LINE_BYTES_MAX} bytes: break it up")
        if number == 1:
            line = line.removeprefix(_BOM)
        yield number, _decoded(path, f"line {number}", line).rstrip("\r\n")


def _decoded(path: Path, place: str, data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        cause = f"is not UTF-8 ({error.reason} at byte {error.start}): convert the file"
        _refuse(path, place, cause)
    _require_clean(path, place, text)
    return text


def _require_clean(path: Path, place: str, text: str) -> None:
    if "\0" in text:
        _refuse(path, place, "holds a NUL character, as no text does: name another file")


# --- JSON -----------------------------------------------------------------------------------------


def _json_lines(path: Path, file: BinaryIO) -> Iterator[str]:
    for number, line in _lines(path, file):
        if line.strip():
            place = f"line {number}"
            yield _text_of(path, place, _parsed(path, place, line))


def _array(path: Path, file: BinaryIO) -> Iterator[str]:
    data = file.read(ARRAY_BYTES_MAX + 1)
    if len(data) > ARRAY_BYTES_MAX:
        cause = f"is a JSON array of more than {ARRAY_BYTES_MAX} bytes: write one object to a line"
        raise TextError(f"The text file {path} {cause}.")
    records = _parsed(path, "the array", _decoded(path, "the array", data.removeprefix(_BOM)))
    if not isinstance(records, list):
        _refuse(path, "the file", "is no array of objects")
    for number, record in enumerate(records, 1):
        yield _text_of(path, f"element {number}", record)


def _parsed(path: Path, place: str, text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}" if place == "the array" else place
        _refuse(path, where, f"is not JSON ({error.msg} at character {error.colno})")
    except (ValueError, RecursionError) as error:
        _refuse(path, place, f"cannot be read as JSON ({error})")


def _text_of(path: Path, place: str, record: object) -> str:
    if not isinstance(record, Mapping):
        _refuse(path, place, "is not a JSON object")
    text = next((record[key] for key in TEXT_KEYS if key in record), None)
    if not isinstance(text, str):
        _refuse(path, place, f"has no text under {' or '.join(map(repr, TEXT_KEYS))}")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        _refuse(path, place, "holds half of a surrogate pair, which is no character")
    _require_clean(path, place, text)
    return text


def _refuse(path: Path, place: str, cause: str) -> NoReturn:
    raise TextError(f"{path}, {place}: {cause}.")
