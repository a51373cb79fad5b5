"""Format versions: the change that each step from one to the next makes, and how it is made.

    1  the first
    2  a revision can put other patches in the place of earlier ones (`replaces`)
    3  a revision can bring general text that is watched, and edits have neighbours (`watch`)
    4  a queue of corrections stands beside the history (`queue`)
    5  requests show pictures, which revisions name (`pictures`)

A version 1 reader would pass over `replaces` and take the state for damaged, a version 2 reader
would edit without the watch set, a version 3 reader would leave the queue out of an archive, a
version 4 reader the pictures, hence the numbers. A store of format 3 is used as it is, and has
format 4 from its queue's first record on; with its first picture a store has format 5. A step
leaves the old files as they are until all that it needs is written; `cedit.toml` says the new
number last. The old settings and journal are kept in `backup/`. A newer format is refused by name:
only the version that wrote it knows its meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from store import config, durable
from store.errors import FormatVersionError, IntegrityError
from store.lock import WriterLock

BACKUP = "backup"
_LINE = re.compile(r"(?m)^format[ \t]*=[ \t]*([0-9]+)")


@dataclass(frozen=True)
class Upgrade:
    """A step from one format to the next."""

    change: str  # in words
    apply: Callable[[Path], None]  # to the store's folder; may be repeated after it broke off


@dataclass(frozen=True)
class Migrated:
    """The outcome of a migration: both formats, the changes in words, the backup if any."""

    before: int
    after: int
    changes: tuple[str, ...]
    backup: Path | None


def migrate(path: Path) -> Migrated:
    """Bring a store to the format of this version; a store that has it stays as it is.

    Raises NoStore, StoreLocked, StoreFull, IntegrityError, FormatVersionError for a newer format.
    """
    path = path.absolute()
    version = config.found_format(path)
    if version >= config.FORMAT and config.is_opened(version):
        return Migrated(version, version, (), None)
    steps = _steps(path, version)
    lock = WriterLock.acquire(path / "lock")
    try:
        backup = _back_up(path, version)
        for number, step in steps.items():
            step.apply(path)
            _say_format(path, number)
    finally:
        lock.release()
    changes = tuple(step.change for step in steps.values())
    return Migrated(version, config.FORMAT, changes, backup)


def require_format(path: Path, number: int) -> None:
    """Let a store that is open for writing, of a format that is opened as it is, say this one, or
    stay at a later one. Its caller has the lock."""
    if config.found_format(path) < number:
        _say_format(path, number)


def _nothing(_: Path) -> None:
    """Leave the files as they are: the new format only allows more in them."""


STEPS: Mapping[int, Upgrade] = {
    2: Upgrade("a revision can put other patches in the place of earlier ones", _nothing),
    3: Upgrade("a revision can bring general text that is watched", _nothing),
    4: Upgrade("a queue of corrections stands beside the history", _nothing),
}
"""Steps by the format that they lead to."""


def _steps(path: Path, before: int) -> dict[int, Upgrade]:
    numbers = range(before + 1, config.FORMAT + 1)
    if before > config.FORMAT or not set(numbers) <= STEPS.keys():
        raise FormatVersionError(
            path / config.FILE_NAME, f"format = {before}", f"format = {config.FORMAT}"
        )
    return {number: STEPS[number] for number in numbers}


def _back_up(path: Path, before: int) -> Path:
    """Copy the settings and the journal; patches never change."""
    folder = path / BACKUP / f"format-{before}"
    files = (path / config.FILE_NAME, path / "journal" / "data.mdb")
    durable.require_room(path, sum(file.stat().st_size for file in files))
    durable.make_folder_durably(folder)
    for file in files:
        durable.copy_durably(file, folder / file.name)
    return folder


def _say_format(path: Path, number: int) -> None:
    """Change the number in `cedit.toml`, and nothing else that people have written there."""
    file = path / config.FILE_NAME
    text = file.read_bytes().decode("utf-8")
    content, count = _LINE.subn(f"format = {number}", text, count=1)
    if count != 1:
        raise IntegrityError(config.FILE_NAME, "has no line `format = …` of its own to change")
    durable.write_durably(file, config.marked(content.encode("utf-8")))
