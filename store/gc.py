"""Garbage: files in a store's folder that nothing leads to any more.

These are patches and pictures that no entry of the journal names (those of a step that was rolled
back or reverted are named),
leftovers of writes that broke off, cached sets that nothing points to, and snapshots that neither
head nor a tag begins with. The journal itself loses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from store import durable
from store.cache import Cache
from store.errors import StoreError
from store.store import Store

WRITING_MAX_S = 3600.0  # a set that a process is writing is younger than this


@dataclass(frozen=True)
class Garbage:
    """A file that can go."""

    path: Path
    length: int  # bytes
    why: str


def find(store: Store, *, with_cache: bool = False) -> list[Garbage]:
    """Return all files that can go; with `with_cache` also useful ones that can be made again.

    Beside a store open for reading only, a writer may be at work on files that look like garbage:
    then only files untouched for an hour are returned. Raises IntegrityError where the journal
    cannot be read to its end.
    """
    garbage_by_path = {garbage.path: garbage for garbage in _all(store, with_cache)}
    return [
        garbage_by_path[path]
        for path in sorted(garbage_by_path)
        if store.writable or not _may_be_in_work(path)
    ]


def collect(store: Store, found: Iterable[Garbage]) -> None:
    """Remove the garbage. Raises StoreError where the disk does not let it."""
    if not store.writable:
        raise StoreError(f"{store.path} is open for reading only: open it writable")
    # A folder sorts before its files, and has to go after them.
    durable.remove_durably(sorted((garbage.path for garbage in found), reverse=True))


def _all(store: Store, with_cache: bool) -> Iterator[Garbage]:
    yield from _snapshots(store, with_cache)
    yield from _cached(Cache(store.cache), with_cache)
    yield from _orphans(store)
    yield from leftovers(store)


def _orphans(store: Store) -> Iterator[Garbage]:
    used_digests = {ref.sha256 for revision in store.revisions() for ref in revision.blobs}
    for sha256 in store.blobs.digests():
        if sha256 not in used_digests:
            yield from _garbage(store.blobs.path(sha256), "no revision uses this patch")
    shown_digests = store.pictures_shown()
    for sha256 in store.pictures.digests():
        if sha256 not in shown_digests:
            why = "no revision shows this picture, and nothing in the queue"
            yield from _garbage(store.pictures.path(sha256), why)


def leftovers(store: Store) -> Iterator[Garbage]:
    """Yield the files that interrupted writes have left."""
    for path in sorted(store.path.rglob(f"{durable.TEMPORARY_PREFIX}*")):
        if path.is_relative_to(store.cache) and _may_be_in_work(path):
            continue
        files = sorted(path.rglob("*")) if path.is_dir() and not path.is_symlink() else []
        for file in (*files, path):
            yield from _garbage(file, "left from a write that broke off")


def _may_be_in_work(path: Path) -> bool:
    """Tell whether somebody may be writing this: a reader to the cache, which needs no lock, or a
    writer where this process is a reader."""
    with suppress(FileNotFoundError):
        return time.time() - path.lstat().st_mtime < WRITING_MAX_S
    return True


def _cached(cache: Cache, with_cache: bool) -> Iterator[Garbage]:
    for path in cache.loose():
        if not _may_be_in_work(path):
            yield from _garbage(path, "nothing points to it")
    if with_cache:
        for name in cache.names():
            for path in cache.files(name):
                yield from _garbage(path, "cached: can be made again")


def _snapshots(store: Store, with_cache: bool) -> Iterator[Garbage]:
    yield from _cached(store.snapshots, with_cache)
    needed_names = store.snapshots_needed()
    for name in store.snapshots.names():
        if name not in needed_names:
            for path in store.snapshots.files(name):
                yield from _garbage(path, "a snapshot on the way to neither head nor a tag")


def _garbage(path: Path, why: str) -> Iterator[Garbage]:
    """Yield the garbage at `path`, or nothing where a writer has been quicker."""
    with suppress(FileNotFoundError):
        entry = path.lstat()
        yield Garbage(path, 0 if path.is_dir() else entry.st_size, why)
