"""One writer at a time: an advisory lock on a file that says who holds it.

The lock is the kernel's and ends with its process, however that ends; the text in the file is only
for people. It is written in place, for a renamed file would be another lock, and wiped on release:
between taking and signing the file says nothing, never the name of the holder before.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from store import canonical, errors
from store.errors import StoreLocked

_TEXT_LENGTH_MAX = 4096  # bytes


class WriterLock:
    """A lock that is held until `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self._pid = os.getpid()

    @classmethod
    def acquire(cls, path: Path) -> Self:
        """Take the lock at once. Raises StoreLocked naming the holder."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise errors.from_os(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _sign(descriptor)
        except BlockingIOError:
            holder = os.pread(descriptor, _TEXT_LENGTH_MAX, 0)
            os.close(descriptor)
            raise _locked(path, holder) from None
        except OSError as error:
            os.close(descriptor)
            raise errors.from_os(path, error) from error
        return cls(descriptor)

    def release(self) -> None:
        """Let another writer in. In a forked child, leave the parent's lock as it is."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with suppress(OSError):  # closing is enough, and closes even where it reports an error
            if os.getpid() == self._pid:
                with suppress(OSError):
                    os.ftruncate(descriptor, 0)
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        with suppress(OSError):
            os.close(descriptor)


def _sign(descriptor: int) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    text = canonical.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text + b"\n", 0)


def _locked(path: Path, text: bytes) -> StoreLocked:
    try:
        holder = json.loads(text)
        error = StoreLocked(path.parent, holder["pid"], holder["host"], holder["since"])
    except (ValueError, KeyError, TypeError):  # taken, and not yet signed
        return StoreLocked(path.parent, None, None, None)
    return StoreLocked(path.parent, None, None, None) if _has_ended(error) else error


def _has_ended(holder: StoreLocked) -> bool:
    """Tell whether the name in the file is left from a holder that was killed."""
    if holder.host != socket.gethostname() or not isinstance(holder.pid, int):
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except (OverflowError, PermissionError):
        return False
    return False
