"""The store's errors, one class for each fault that a caller may want to tell apart.

Knows how a fault is worded (object, cause, remedy) and its exit code; leaves printing to others.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class CeditError(Exception):
    """The base of everything that cedit raises on purpose, in the store and in the engine."""

    exit_code = 1


class StoreError(CeditError):
    """The base of everything that the store raises on purpose."""


class NoStore(StoreError):
    """The place that was searched has no store."""

    exit_code = 10

    def __init__(self, where: Path) -> None:
        super().__init__(f"no store at {where}: create one with `cedit init`, or name it (--store)")
        self.where = where


class StoreLocked(StoreError):
    """Another process is writing."""

    exit_code = 11

    def __init__(self, path: Path, pid: int | None, host: str | None, since: str | None) -> None:
        holder = f"process {pid or 'unknown'} on {host or 'unknown host'}"
        start = f" since {since}" if since else ""
        super().__init__(
            f"{path} is being written by {holder}{start}: wait for it to end, or stop it"
        )
        self.path, self.pid, self.host, self.since = path, pid, host, since


class FormatVersionError(StoreError):
    """The store was written in a format that this version does not read."""

    exit_code = 12

    def __init__(
        self, path: Path, found: object, supported: object, *, is_older: bool = False
    ) -> None:
        remedy = "use the version that wrote it, or a newer one"
        if is_older:
            remedy = "run `cedit migrate`, which keeps a copy of what it changes"
        super().__init__(f"{path} says {found!r}; this cedit reads {supported!r}: {remedy}")
        self.path, self.found, self.supported = path, found, supported


class IntegrityError(StoreError):
    """Bytes on the disk differ from the bytes that were written."""

    exit_code = 20

    def __init__(
        self, object: str, problem: str, remedy: str = "`cedit verify` checks the whole store"
    ) -> None:
        super().__init__(f"{object}: {problem} ({remedy})")
        self.object, self.problem = object, problem


class UnknownRevision(StoreError):
    """No revision goes by this name."""

    exit_code = 2

    def __init__(self, name: str, cause: str = "no revision goes by this name") -> None:
        super().__init__(f"{name!r}: {cause} (`cedit log` lists the revisions)")
        self.name = name


class AmbiguousRevision(StoreError):
    """Several revisions share this prefix."""

    exit_code = 2

    def __init__(self, name: str, candidates: Sequence[str]) -> None:
        names = ", ".join(identity[:12] for identity in candidates)
        super().__init__(f"{name!r} is the start of several revisions: {names}; give more of it")
        self.name, self.candidates = name, tuple(candidates)


class StoreExists(StoreError):
    """A new store cannot be made here."""

    def __init__(self, path: Path, cause: str = "there is a store already") -> None:
        super().__init__(f"{path}: {cause}; choose another place")
        self.path = path


class StoreFull(StoreError):
    """No room left for a write."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"no room to write {path} ({cause}): every revision acknowledged so far is unharmed; "
            "free some space (or raise the quota or file limit) and open the store again"
        )
        self.path = path


class StorageFault(StoreError):
    """The disk failed a write; how much of that write it holds is unknown."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"writing {path} failed ({cause}): nothing of it was acknowledged; "
            "check the disk, then open the store again"
        )
        self.path = path


def from_os(path: Path, error: OSError) -> StoreError:
    """Return the store's own error for an error of the operating system."""
    cause = error.strerror or str(error)
    if error.errno in FULL:
        return StoreFull(path, cause)
    if error.errno in FORBIDDEN:
        return StoreError(f"{path} can't be written: {cause}; check its owner and permissions")
    return StorageFault(path, cause)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the operating system's errors in reading `path` into a StoreError that names the
    file."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        text = (
            f"{error.filename or path} can't be read: {cause}; check its permissions, and the disk"
        )
        raise StoreError(text) from error
