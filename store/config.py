"""`cedit.toml`: the mark of a store, its format, and settings that people read.

Knows TOML of tables, numbers, text and lists; leaves the meaning of the settings to the caller.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from store import canonical, durable
from store.errors import FormatVersionError, IntegrityError, NoStore, StoreError, reading
from store.journal import LIB_VERSION

FILE_NAME = "cedit.toml"
FORMAT = 4
"""The format of a new store."""
WITH_QUEUE, WITH_PICTURES = 4, 5
"""The formats of a store with a queue, and of one that has pictures."""
OPENED = (3, 4, 5)
"""Formats that are read and written as they are: 4 only has a table more, the queue, and 5 only a
folder more, the pictures."""
_MARK = b"# sha256 "  # before the digest of all lines above
_MARKED = re.compile(_MARK + rb"[0-9a-f]{64}\n\Z")
_RESERVED = {"format": FORMAT, "lmdb": LIB_VERSION}


def exists(root: Path) -> bool:
    """Tell whether the folder is a store. Raises StoreError where it may not be looked at."""
    with reading(root / FILE_NAME):
        return (root / FILE_NAME).is_file()


def read(root: Path) -> dict[str, Any]:
    """Read the caller's settings. Raises NoStore, FormatVersionError, IntegrityError."""
    path = root / FILE_NAME
    settings = _parsed(root)
    for key, version in _RESERVED.items():
        value = _required(settings, key)
        if value != version and not (key == "format" and is_opened(value)):
            is_older = key == "format" and type(value) is int and 0 < value < version
            raise FormatVersionError(
                path, f"{key} = {value}", f"{key} = {version}", is_older=is_older
            )
        settings.pop(key)
    return settings


def is_opened(version: object) -> bool:
    """Tell whether a store that says this format is opened without a migration."""
    return type(version) is int and version in OPENED


def found_format(root: Path) -> int:
    """Read the format that a store says it has. Raises NoStore, IntegrityError."""
    version = _required(_parsed(root), "format")
    if type(version) is not int:
        raise IntegrityError(FILE_NAME, f"says format = {version!r}, which is no number")
    return version


def _required(settings: Mapping[str, Any], key: str) -> Any:
    if key not in settings:
        raise IntegrityError(FILE_NAME, f"has no {key!r}")
    return settings[key]


def _parsed(root: Path) -> dict[str, Any]:
    path = root / FILE_NAME
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise NoStore(root) from None
    except OSError as error:
        raise StoreError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise IntegrityError(FILE_NAME, f"is not TOML ({error})") from error


def write(root: Path, settings: Mapping[str, Any]) -> None:
    """Write the file durably, format first. Settings that are None are left out."""
    if reserved_names := _RESERVED.keys() & settings.keys():
        raise StoreError(f"settings can't be called {sorted(reserved_names)}: the names are taken")
    lines = [*_table({**_RESERVED, **settings}, ()), ""]
    durable.write_durably(root / FILE_NAME, marked("\n".join(lines).encode("utf-8")))


def change(root: Path, table: str, key: str, value: str) -> None:
    """Set one text in a table durably; all else stays as people have written it.

    Raises StoreError where the table has no line for it.
    """
    file = root / FILE_NAME
    was_as_written = is_as_written(root)
    text = file.read_bytes().decode("utf-8")
    line = re.compile(
        rf"(^\[{re.escape(table)}\]\n(?:(?!\[).*\n)*?){re.escape(key)} *=.*$", re.MULTILINE
    )
    content = line.sub(lambda match: f"{match[1]}{key} = {_quoted(value)}", text, count=1)
    if tomllib.loads(content).get(table, {}).get(key) != value:
        raise StoreError(f"{file} has no line {key} = … under [{table}]: write it there")
    data = content.encode("utf-8")
    durable.write_durably(file, marked(data) if was_as_written else data)


def marked(text: bytes) -> bytes:
    """Return the file's text with its checksum as the last line, in place of an old checksum."""
    text = _MARKED.sub(b"", text)
    return text + _MARK + _checksum(text) + b"\n"


def is_as_written(root: Path) -> bool:
    """Tell whether the file is as `write` left it: people may change it, and faults too."""
    with reading(root / FILE_NAME):
        text, mark, checksum = (root / FILE_NAME).read_bytes().rpartition(_MARK)
    return bool(mark) and checksum == _checksum(text) + b"\n"


def _checksum(text: bytes) -> bytes:
    return canonical.digest(text).encode("ascii")


def _table(table: Mapping[str, Any], place: tuple[str, ...]) -> Iterator[str]:
    for key, value in table.items():
        if value is not None and not isinstance(value, Mapping):
            yield f"{_text(key)} = {_value(key, value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield ""
            yield f"[{'.'.join(_text(part) for part in (*place, key))}]"
            yield from _table(value, (*place, key))


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(key, item) for item in value)}]"
    raise StoreError(f"setting {key!r} can't be written: {type(value).__name__} is not for TOML")


def _text(key: str) -> str:
    is_bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if is_bare else _quoted(key)


def _quoted(text: str) -> str:
    """Return a TOML basic string: JSON's escapes, and DEL, which JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
