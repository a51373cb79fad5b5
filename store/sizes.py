"""The bytes that a store's parts take on the disk, for people who want to know where they go.

Looks at files' sizes and opens none. A file that disappears meanwhile counts for nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from store.errors import reading

if TYPE_CHECKING:
    from store.store import Store


@dataclass(frozen=True)
class FolderSizes:
    """Bytes by part of the folder."""

    journal: int
    patches: int  # all files there, garbage included
    snapshots: int
    cache: int
    quarantine: int
    pictures: int = 0


def measure(store: Store) -> FolderSizes:
    """Return the sizes now. Raises StoreError for a folder that may not be looked at."""
    return FolderSizes(
        journal=_bytes_in(store.path / "journal"),
        patches=_bytes_in(store.path / "patches"),
        snapshots=_bytes_in(store.path / "snapshots"),
        cache=_bytes_in(store.cache),
        quarantine=_bytes_of(store.path / "quarantine.jsonl"),
        pictures=_bytes_in(store.path / "pictures"),
    )


def _bytes_in(folder: Path) -> int:
    """Return the bytes of all files below a folder, links not followed."""
    with reading(folder):
        try:
            with os.scandir(folder) as entries:
                children = list(entries)
        except FileNotFoundError:
            return 0
        return sum(
            _bytes_in(Path(entry))
            if entry.is_dir(follow_symlinks=False)
            else _bytes_of(Path(entry))
            for entry in children
        )


def _bytes_of(file: Path) -> int:
    with reading(file):
        try:
            return file.lstat().st_size
        except FileNotFoundError:
            return 0
