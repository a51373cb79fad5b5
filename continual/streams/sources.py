"""The sources of a stream's bytes: a file, a compressed file, a growing file, or a pipe.

Opens a file and looks at its beginning, waits at the end of a file that is followed, and notices
that it was cut short or that another file has its name. Leaves records to ``records``.
"""

from __future__ import annotations

import io
import lzma
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from continual.errors import StreamChanged, StreamError, StreamReplaced
from continual.streams.kinds import BLANK, BOM, CHUNK_BYTES, decompressed

STANDARD_INPUT = "-"


def existing(source: str) -> str:
    """Return the absolute path of a source, or ``-``. Raises StreamError if there is no such file.

    ``/dev/stdin`` and its other names become ``-``.
    """
    if source in (STANDARD_INPUT, "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"):
        return STANDARD_INPUT
    path = Path(source).absolute()
    if not path.exists():
        raise StreamError(f"the stream {path} does not exist: check the path")
    if path.is_dir():
        raise StreamError(f"the stream {path} is a folder: name a file in it")
    return str(path)


def has_past(name: str) -> bool:
    """Tell whether the source can be read again, as a regular file can. A pipe, a FIFO, standard
    input and ``/dev/fd/N`` are read once, whatever had that name before."""
    path = Path(name)
    is_device = path.parts[:2] in (("/", "dev"), ("/", "proc"))
    return name != STANDARD_INPUT and not is_device and path.is_file()


@dataclass
class Source:
    """An open source: its bytes from the beginning, unpacked, and the first of them."""

    file: BinaryIO
    beginning: bytes
    is_compressed: bool


@contextmanager
def opened(name: str) -> Iterator[Source]:
    """Open a source and look at its beginning. Raises StreamError if it cannot be read."""
    try:
        with _opened(name) as file:
            beginning, file = _looked_into(file)
            content = decompressed(file, beginning)
            if content is None:
                yield Source(file, beginning, is_compressed=False)
                return
            with content:
                beginning, content = _looked_into(content, is_pipe=not file.seekable())
                yield Source(content, beginning, is_compressed=True)
    except OSError as error:
        raise StreamError(f"the stream {name} cannot be read: {error.strerror or error}") from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise StreamError(
            f"the stream {name} cannot be unpacked: {error}. Pack it again, or give it unpacked"
        ) from error


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == STANDARD_INPUT:
        yield sys.stdin.buffer
        return
    with Path(name).open("rb") as file:
        yield file


def _looked_into(file: BinaryIO, *, is_pipe: bool = False) -> tuple[bytes, BinaryIO]:
    """Return the beginning of a file, at least up to its first byte that is not blank, and the file
    from its beginning."""
    if file.seekable() and not is_pipe:
        place = file.tell()
        beginning = _beginning(lambda: file.read(CHUNK_BYTES))
        file.seek(place)
        return beginning, file
    beginning = _beginning(lambda: file.readline(CHUNK_BYTES))
    return beginning, io.BufferedReader(_PutBack(beginning, file))


def _beginning(read: Callable[[], bytes]) -> bytes:
    beginning = b""
    while chunk := read():
        beginning += chunk
        if beginning.removeprefix(BOM).strip(BLANK):
            break
    return beginning


class _PutBack(io.RawIOBase):
    """A pipe with its first bytes put back; a read returns the bytes that are there."""

    def __init__(self, beginning: bytes, file: BinaryIO) -> None:
        self._beginning = beginning
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        if not self._beginning:
            chunk: bytes = self._file.read1(len(view))  # type: ignore[attr-defined]
        else:
            chunk, self._beginning = self._beginning[: len(view)], self._beginning[len(view) :]
        view[: len(chunk)] = chunk
        return len(chunk)


@dataclass
class Tail:
    """An open file, read to its end and, for a patient caller, beyond it as it grows."""

    name: str
    file: BinaryIO
    poll_seconds: float
    stop: threading.Event

    def chunk(self, *, patient: bool) -> bytes:
        """Return the next bytes, up to a line's end; empty if no more will come.

        A patient caller waits for more. Raises StreamChanged if the file is cut short, and
        StreamReplaced if another file has its name.
        """
        while True:
            chunk = self.file.readline(CHUNK_BYTES)
            if chunk or not patient:
                return chunk
            if self._is_replaced():
                return self.file.readline(CHUNK_BYTES) or self._give_up()
            if self.stop.wait(self.poll_seconds):
                return b""

    def _give_up(self) -> bytes:
        raise StreamReplaced(
            f"the stream {self.name} is another file now, as a log is when it is rotated: "
            "read the new one from its beginning"
        )

    def _is_replaced(self) -> bool:
        """Tell whether another file has the name, and is not empty: a writer has moved to it.
        Raises StreamChanged for a file that was cut short."""
        if not self.file.seekable():
            return False
        file_stat = os.fstat(self.file.fileno())
        if file_stat.st_size < self.file.tell():
            raise StreamChanged(
                f"the stream {self.name} was cut short while it was followed: "
                "read it from its beginning"
            )
        try:
            name_stat = Path(self.name).stat()
        except OSError:
            return False  # its new file is not there yet
        is_other = (name_stat.st_dev, name_stat.st_ino) != (file_stat.st_dev, file_stat.st_ino)
        return is_other and name_stat.st_size > 0
