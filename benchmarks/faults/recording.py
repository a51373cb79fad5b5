"""A process's calls to its file system, in order: strace's log, read into events.

Knows how strace writes system calls, also calls that another thread interrupts, and which
descriptor is which file. Leaves the disk after a power loss to `disk`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CALLS = (
    "open,openat,creat,close,read,write,pwrite64,writev,pwritev,lseek,ftruncate,truncate,fallocate,"
    "fsync,fdatasync,msync,sync_file_range,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,"
    "mkdirat,link,linkat,symlink,sendto,sendfile,copy_file_range,dup,dup2,dup3,fcntl"
)
OPTIONS = ("-qq", "-xx", "-s", "16777216", "-e", f"trace={CALLS}", "-e", "signal=none")
_LINE = re.compile(r"(\d+) +(.*)")
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>(.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+|\?)(.*)", re.DOTALL)
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_IOV = re.compile(r'iov_base="((?:\\x[0-9a-f]{2})*)"')
_PLACE = re.compile(r"\[(\d+)\]")
_UNFINISHED = " <unfinished ...>"


@dataclass(frozen=True)
class Span:
    """A part of a file."""

    path: Path
    offset: int
    length: int  # bytes


@dataclass(frozen=True)
class Event:
    """One call to the file system; it began and ended at two different moments."""

    kind: str  # write, copy, truncate, sync, create, mkdir, rename, remove, said
    path: Path | None
    began: int
    ended: int
    offset: int = 0
    data: bytes = b""
    target: Path | None = None
    is_synced: bool = False  # a write to a descriptor with O_SYNC or O_DSYNC
    source: Span | None = None  # of a copy: the log does not have the bytes


@dataclass
class _OpenFile:
    path: Path
    offset: int = 0
    is_synced: bool = False


def read_log(text: str, root: Path) -> list[Event]:
    """Return the events below a folder, and the messages through a socket."""
    return list(_LogReader(root).events(text))


class _LogReader:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[int, _OpenFile] = {}

    def events(self, text: str) -> Iterator[Event]:
        """Yield all events of a log."""
        begun: dict[str, tuple[int, str]] = {}
        for place, line in enumerate(text.splitlines()):
            match = _LINE.fullmatch(line)
            if match is None:
                continue
            pid, rest = match.groups()
            if rest.endswith(_UNFINISHED):
                begun[pid] = 2 * place, rest.removesuffix(_UNFINISHED)
                continue
            began = 2 * place
            if resumed := _RESUMED.fullmatch(rest):
                if pid not in begun:  # it had begun before strace came
                    continue
                began, head = begun.pop(pid)
                rest = head + resumed[2]
            if call := _CALL.fullmatch(rest):
                yield from self._call(call, began, 2 * place + 1)

    def _call(self, call: re.Match[str], began: int, ended: int) -> Iterator[Event]:
        name, arguments, result = call[1], call[2], call[3]
        if result == "?" or int(result) < 0:
            return
        action = getattr(self, f"_{name}", None)
        if action is not None:
            yield from action(arguments, int(result), began, ended)
        elif name not in ("fcntl",):
            raise ValueError(f"this recording has a call that is not understood: {name}")

    # -- descriptors

    def _openat(self, arguments: str, result: int, began: int, ended: int) -> Iterator[Event]:
        path = self._named_path(arguments)
        flags = arguments.rpartition('"')[2]
        if path is None:
            self.files.pop(result, None)
            return
        is_synced = "O_SYNC" in flags or "O_DSYNC" in flags
        self.files[result] = _OpenFile(path, is_synced=is_synced)
        if "O_CREAT" in flags:
            yield Event("create", path, began, ended)
        if "O_TRUNC" in flags:
            yield Event("truncate", path, began, ended)

    _open = _openat

    def _named_path(self, arguments: str) -> Path | None:
        """Return the path that a call names, by itself or below an open folder; None outside the
        root."""
        path = _paths(arguments)[0]
        if not path.is_absolute() and (start := arguments.partition(",")[0]).isdecimal():
            folder = self.files.get(int(start))
            path = path if folder is None else folder.path / path
        return path if path.is_relative_to(self.root) else None

    def _close(self, arguments: str, *_: int) -> Iterator[Event]:
        self.files.pop(int(arguments), None)
        return iter(())

    def _read(self, arguments: str, result: int, *_: int) -> Iterator[Event]:
        if file := self.files.get(_descriptor(arguments)):
            file.offset += result
        return iter(())

    def _lseek(self, arguments: str, result: int, *_: int) -> Iterator[Event]:
        if file := self.files.get(_descriptor(arguments)):
            file.offset = result
        return iter(())

    # -- content

    def _write(self, arguments: str, result: int, began: int, ended: int) -> Iterator[Event]:
        if file := self.files.get(_descriptor(arguments)):
            data = _data(_TEXT, arguments)[:result]
            yield self._written(file, file.offset, data, began, ended)
            file.offset += result

    def _sendto(self, arguments: str, result: int, began: int, ended: int) -> Iterator[Event]:
        yield Event("said", None, began, ended, data=_data(_TEXT, arguments)[:result])

    def _writev(self, arguments: str, result: int, began: int, ended: int) -> Iterator[Event]:
        if file := self.files.get(_descriptor(arguments)):
            data = _data(_IOV, arguments)[:result]
            yield self._written(file, file.offset, data, began, ended)
            file.offset += result

    def _pwrite64(self, arguments: str, result: int, began: int, ended: int) -> Iterator[Event]:
        if file := self.files.get(_descriptor(arguments)):
            offset = int(arguments.rpartition(",")[2])
            yield self._written(file, offset, _data(_TEXT, arguments)[:result], began, ended)

    def _pwritev(self, arguments: str, result: int, began: int, ended: int) -> Iterator[Event]:
        if file := self.files.get(_descriptor(arguments)):
            offset = int(arguments.rpartition(",")[2])
            yield self._written(file, offset, _data(_IOV, arguments)[:result], began, ended)

    def _sendfile(self, arguments: str, result: int, began: int, ended: int) -> Iterator[Event]:
        target, source, place, _ = arguments.split(", ", 3)
        file = self.files.get(int(target))
        if file is None or not result:
            return
        origin, at = self.files[int(source)], _PLACE.match(place)
        span = Span(origin.path, int(at[1]) if at else origin.offset, result)
        yield Event(
            "copy", file.path, began, ended, file.offset, is_synced=file.is_synced, source=span
        )
        file.offset += result
        origin.offset += 0 if at else result

    def _written(self, file: _OpenFile, offset: int, data: bytes, began: int, ended: int) -> Event:
        return Event("write", file.path, began, ended, offset, data, is_synced=file.is_synced)

    def _ftruncate(self, arguments: str, _: int, began: int, ended: int) -> Iterator[Event]:
        if file := self.files.get(_descriptor(arguments)):
            length = int(arguments.rpartition(",")[2])
            yield Event("truncate", file.path, began, ended, offset=length)

    def _truncate(self, arguments: str, _: int, began: int, ended: int) -> Iterator[Event]:
        length = int(arguments.rpartition(",")[2])
        yield from self._named("truncate", arguments, began, ended, length)

    def _fsync(self, arguments: str, _: int, began: int, ended: int) -> Iterator[Event]:
        if file := self.files.get(_descriptor(arguments)):
            yield Event("sync", file.path, began, ended)

    _fdatasync = _fsync

    # -- names

    def _mkdir(self, arguments: str, _: int, began: int, ended: int) -> Iterator[Event]:
        yield from self._named("mkdir", arguments, began, ended)

    def _unlink(self, arguments: str, _: int, began: int, ended: int) -> Iterator[Event]:
        yield from self._named("remove", arguments, began, ended)

    _rmdir = _unlink

    def _unlinkat(self, arguments: str, _: int, began: int, ended: int) -> Iterator[Event]:
        if path := self._named_path(arguments):
            yield Event("remove", path, began, ended)

    def _rename(self, arguments: str, _: int, began: int, ended: int) -> Iterator[Event]:
        source, target = _paths(arguments)
        if not source.is_relative_to(self.root):
            return
        for file in self.files.values():  # an open file goes with its name
            if file.path.is_relative_to(source):
                file.path = target / file.path.relative_to(source)
        yield Event("rename", source, began, ended, target=target)

    _renameat = _renameat2 = _rename

    def _named(
        self, kind: str, arguments: str, began: int, ended: int, offset: int = 0
    ) -> Iterator[Event]:
        path = _paths(arguments)[0]
        if path.is_relative_to(self.root):
            yield Event(kind, path, began, ended, offset)


def _descriptor(arguments: str) -> int:
    return int(arguments.partition(",")[0])


def _paths(arguments: str) -> list[Path]:
    return [Path(os.fsdecode(_bytes(text))) for text in _TEXT.findall(arguments)]


def _data(pattern: re.Pattern[str], arguments: str) -> bytes:
    return b"".join(_bytes(text) for text in pattern.findall(arguments))


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
