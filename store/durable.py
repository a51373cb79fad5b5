"""The one way by which bytes reach the disk, other than LMDB's own.

When one of these functions returns, its work is on the disk, whole, even if the power fails next.
Knows files and folders; leaves their content and their names to others.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from store import errors

TEMPORARY_PREFIX = ".tmp-"
MARGIN_BYTES = 1 << 20  # left free beside the room for a write: for the journal, and for others


def write_durably(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Put `data` at `path` in place of the old content. A crash leaves all of it or none of it.

    `mode` has the file's permissions, from its first byte on. Raises StoreFull when there is no
    room, StorageFault when the disk failed.
    """
    make_folder_durably(path.parent)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    with _reported(path):
        try:
            _write_new(temporary, data, mode)
            temporary.rename(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def place_durably(path: Path, data: bytes) -> None:
    """Write `data` as `write_durably` does, under a name that nothing relies on before this
    returns.

    The file has its name before it is on the disk, so that both take one turn of the file system's
    own journal. After a power loss there may be a torn file of that name.
    """
    make_folder_durably(path.parent)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    with _reported(path), _new_file(temporary) as descriptor:
        try:
            _write_all(descriptor, data)
            temporary.rename(path)
            os.fsync(descriptor)
            _sync_folder(path.parent)
        except BaseException:  # a file that failed to sync may read well now, and be lost later
            temporary.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise


def append_durably(path: Path, data: bytes) -> None:
    """Add whole lines to the end of `path`.

    An unfinished last line is left from an append that crashed before it was acknowledged: it is
    cut off first. If this append fails, its own bytes are cut off again.
    """
    make_folder_durably(path.parent)
    with _reported(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _append(descriptor, data)
        finally:
            os.close(descriptor)
        _sync_folder(path.parent)  # also for an old file: its maker may have been killed


def make_folder_durably(path: Path) -> None:
    """Create `path` and any missing parents, and sync each entry into the folder above it.

    A folder that is there already is taken to be durable: see `sync_folder_durably`. Raises
    StoreExists where something else has its name.
    """
    with _reported(path):
        if path.is_dir():
            return
        if path.exists():
            raise errors.StoreExists(path, "is no folder")
    make_folder_durably(path.parent)
    with _reported(path):
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def move_durably(source: Path, target: Path) -> None:
    """Rename a file or folder that is itself durable, within its file system."""
    with _reported(target):
        source.rename(target)
        _sync_folder(source.parent)
        _sync_folder(target.parent)


def require_room(folder: Path, length: int) -> None:
    """Raise StoreFull, with the sizes, unless a folder has `length` bytes and a margin free.

    Callers ask before a write that could not be finished, so that nothing of it is begun.
    """
    with _reported(folder):
        room = shutil.disk_usage(folder).free
    if room < length + MARGIN_BYTES:
        raise errors.StoreFull(
            folder,
            f"{length:,} bytes and a margin of {MARGIN_BYTES:,} are needed, {room:,} are free",
        )


def copy_durably(source: Path, target: Path) -> None:
    """Copy a whole file to a new name."""
    temporary = target.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    with _reported(target):
        try:
            shutil.copyfile(source, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.rename(target)
            _sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def remove_durably(paths: Iterable[Path]) -> None:
    """Remove files and empty folders, in this order, and sync each parent folder once. A path that
    is gone already is no error."""
    parents: dict[Path, None] = {}
    for path in paths:
        with _reported(path):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        parents[path.parent] = None
    for parent in parents:
        if parent.is_dir():
            sync_folder_durably(parent)


def sync_folder_durably(path: Path) -> None:
    """Make the names in `path`, made or removed by others, survive a power loss."""
    with _reported(path):
        _sync_folder(path)


def sync_file_durably(path: Path) -> None:
    """Make a file that others wrote survive a power loss, and its name with it."""
    with _reported(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync_folder(path.parent)


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.from_os(path, error) from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with _new_file(path, mode) as descriptor:
        _write_all(descriptor, data)
        os.fsync(descriptor)


@contextmanager
def _new_file(path: Path, mode: int = 0o666) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _append(descriptor: int, data: bytes) -> None:
    end = _end_of_last_whole_line(descriptor)
    os.ftruncate(descriptor, end)
    os.lseek(descriptor, end, os.SEEK_SET)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, end)
        raise


def _end_of_last_whole_line(descriptor: int, block: int = 1 << 16) -> int:
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - block)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
