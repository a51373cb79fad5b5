"""The possible contents of a disk after a power loss, given the calls to the file system before.

The file system is a strict one: a file's content is only certain once the file was synced, and a
name only once its folder was. Until then a write may be lost, or torn at a sector; its file may
have grown without it; a new name, a rename or a removal may be there or not, each for itself or (as
on a file system that journals its metadata) up to some moment. A rename itself is whole or not
there.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.faults.recording import Event, Span

SECTOR = 512  # bytes that a disk writes whole, or not
_NEVER = 1 << 60
Tree = dict[str, bytes | None]  # content by path within the store; None is a folder


@dataclass
class _FileChange:
    """A write or a truncation of one file."""

    offset: int
    data: bytes | None  # None: the file's length becomes `offset`
    began: int
    durable: int = _NEVER


@dataclass
class _Inode:
    is_folder: bool
    changes: list[_FileChange] = field(default_factory=list)


@dataclass
class _Renaming:
    """One operation's effects on names: (folder, name) → inode, or None for a removed name."""

    effects: dict[tuple[int, str], int | None]
    began: int
    durable: int = _NEVER


@dataclass(frozen=True)
class Image:
    """A disk after a power loss, and the acknowledgements given by then."""

    tree: Tree
    said: bytes
    moment: int

    @property
    def digest(self) -> bytes:
        """A digest that is equal for equal images."""
        total = hashlib.sha256(repr(self.said).encode())
        for name, content in sorted(self.tree.items()):
            total.update(f"{name}\0{-1 if content is None else len(content)}\0".encode())
            total.update(content or b"")
        return total.digest()

    def write(self, root: Path) -> None:
        """Lay the disk's content out below a folder."""
        root.mkdir(parents=True)
        for name, content in sorted(self.tree.items()):
            path = root / name
            if content is None:
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.write_bytes(content)


class Disk:
    """A file system in use: `base` was there durably, then came the events."""

    def __init__(self, root: Path, base: Tree, events: Sequence[Event]) -> None:
        self.root = root
        self.moments = sorted({at + 1 for event in events for at in (event.began, event.ended)})
        self._inodes = [_Inode(is_folder=True)]
        self._names: dict[tuple[int, str], int] = {}
        self._renamings: list[_Renaming] = []
        self._said: list[tuple[int, bytes]] = []
        for name, content in sorted(base.items()):
            self._lay(name, content)
        for event in events:
            self._take(event)

    # -- the events so far

    def _lay(self, name: str, content: bytes | None) -> None:
        inode = self._link(self.root / name, content is None, began=-1)
        self._renamings[-1].durable = -1
        if content:
            self._inodes[inode].changes.append(_FileChange(0, content, -1, -1))

    def _take(self, event: Event) -> None:
        if event.kind == "said":
            self._said.append((event.ended, event.data))
            return
        assert event.path is not None
        if event.kind in ("create", "mkdir"):
            if self._find(event.path) is None:
                self._link(event.path, event.kind == "mkdir", event.began)
        elif event.kind == "rename":
            assert event.target is not None
            self._move(event.path, event.target, event.began)
        elif event.kind == "remove":
            place = self._place(event.path)
            self._rename({place: None}, event.began)
        elif event.source is not None:
            self._change(replace(event, kind="write", data=self._copied(event.source)))
        else:
            self._change(event)

    def _change(self, event: Event) -> None:
        assert event.path is not None
        number = self._find(event.path)
        if number is None:  # it has lost its name since it was opened
            return
        inode = self._inodes[number]
        if event.kind == "sync":
            self._sync(number, event)
        elif event.kind == "truncate":
            inode.changes.append(_FileChange(event.offset, None, event.began))
        else:
            durable = event.ended if event.is_synced else _NEVER
            inode.changes.append(_FileChange(event.offset, event.data, event.began, durable))

    def _copied(self, span: Span) -> bytes:
        """Return a part of a file as a reader sees it, on the disk or not."""
        number = self._find(span.path)
        assert number is not None, span
        data = _content(self._inodes[number].changes, _NEVER, "all", random.Random(0))
        return data[span.offset : span.offset + span.length]

    def _sync(self, number: int, event: Event) -> None:
        for change in self._inodes[number].changes:
            if change.began < event.began:
                change.durable = min(change.durable, event.ended)
        for renaming in self._renamings:
            if renaming.began < event.began and any(f == number for f, _ in renaming.effects):
                renaming.durable = min(renaming.durable, event.ended)

    def _link(self, path: Path, is_folder: bool, began: int) -> int:
        self._inodes.append(_Inode(is_folder))
        number = len(self._inodes) - 1
        self._rename({self._place(path): number}, began)
        return number

    def _move(self, source: Path, target: Path, began: int) -> None:
        here, there = self._place(source), self._place(target)
        self._rename({here: None, there: self._names[here]}, began)

    def _rename(self, effects: dict[tuple[int, str], int | None], began: int) -> None:
        self._renamings.append(_Renaming(effects, began))
        _apply(self._names, effects)

    def _place(self, path: Path) -> tuple[int, str]:
        folder = self._find(path.parent)
        assert folder is not None, path
        return folder, path.name

    def _find(self, path: Path) -> int | None:
        number: int | None = 0
        for part in path.relative_to(self.root).parts:
            number = self._names.get((number, part)) if number is not None else None
        return number

    # -- possible images

    def images(self, draw: random.Random, count: int) -> Iterator[Image]:
        """Yield `count` different images: for every moment the usual losses, then random ones."""
        seen: set[bytes] = set()
        for image in self._candidates(draw, count):
            if image.digest not in seen:
                seen.add(image.digest)
                yield image
            if len(seen) == count:
                return

    def _candidates(self, draw: random.Random, count: int) -> Iterator[Image]:
        for content in ("none", "all", "random"):
            for names in ("none", "all", "prefix"):
                for moment in draw.sample(self.moments, len(self.moments)):  # in random order
                    yield self._image(moment, draw, names, content)
        for _ in range(20 * count):
            moment = draw.choice(self.moments)
            names = draw.choice(("none", "all", "prefix", "random", "random"))
            yield self._image(moment, draw, names, "random")

    def _image(self, moment: int, draw: random.Random, names: str, content: str) -> Image:
        said = b"".join(data for ended, data in self._said if ended < moment)
        left: dict[tuple[int, str], int] = {}
        for renaming in _kept(self._renamings, moment, names, draw):
            _apply(left, renaming.effects)
        return Image(dict(self._walk(left, 0, "", moment, content, draw)), said, moment)

    def _walk(
        self,
        names: dict[tuple[int, str], int],
        folder: int,
        prefix: str,
        moment: int,
        content: str,
        draw: random.Random,
    ) -> Iterator[tuple[str, bytes | None]]:
        for (parent, name), number in names.items():
            if parent != folder:
                continue
            inode = self._inodes[number]
            if inode.is_folder:
                yield prefix + name, None
                yield from self._walk(names, number, f"{prefix}{name}/", moment, content, draw)
            else:
                yield prefix + name, _content(inode.changes, moment, content, draw)


def _kept(
    renamings: Sequence[_Renaming], moment: int, how: str, draw: random.Random
) -> Iterable[_Renaming]:
    begun = [one for one in renamings if one.began < moment]
    pending = [one for one in begun if one.durable >= moment]
    if how == "prefix":
        kept = pending[: draw.randint(0, len(pending))]
    elif how == "random":
        kept = [one for one in pending if draw.random() < 0.5]
    else:
        kept = pending if how == "all" else []
    lost = {id(one) for one in pending} - {id(one) for one in kept}
    return [one for one in begun if id(one) not in lost]


def _apply(names: dict[tuple[int, str], int], effects: dict[tuple[int, str], int | None]) -> None:
    for place, number in effects.items():
        if number is None:
            names.pop(place, None)
        else:
            names[place] = number


def _content(changes: Sequence[_FileChange], moment: int, how: str, draw: random.Random) -> bytes:
    data = bytearray()
    begun = [change for change in changes if change.began < moment]
    how = draw.choice(("none", "all", "prefix", "any", "torn", "torn")) if how == "random" else how
    pending = sum(change.durable >= moment for change in begun)
    end = draw.randint(0, pending) if how == "prefix" else pending
    grown, place = 0, 0
    for change in begun:
        is_kept, is_torn = True, False
        if change.durable >= moment:
            is_kept = how != "none" and place < end and not (how == "any" and draw.random() < 0.5)
            is_torn = how == "torn" and draw.random() < 0.6
            place += 1
        if change.data is None:
            if is_kept and not (is_torn and draw.random() < 0.5):
                _set_length(data, change.offset)
        elif is_kept:
            _write(data, change, _sectors(change, draw) if is_torn else None)
        if change.data is None and change.durable < moment:
            grown = min(grown, change.offset)
        elif change.data is not None:
            grown = max(grown, change.offset + len(change.data))
    if how in ("torn", "any", "none") and draw.random() < 0.3 and grown > len(data):
        _set_length(data, grown)  # the file has grown, and its new part is lost
    return bytes(data)


def _sectors(change: _FileChange, draw: random.Random) -> set[int]:
    assert change.data is not None
    first = change.offset // SECTOR
    last = (change.offset + len(change.data) - 1) // SECTOR
    return {number for number in range(first, last + 1) if draw.random() < 0.5}


def _write(data: bytearray, change: _FileChange, sectors: set[int] | None) -> None:
    assert change.data is not None
    end = change.offset + len(change.data)
    if sectors is None:
        if len(data) < end:
            _set_length(data, end)
        data[change.offset : end] = change.data
        return
    for number in sorted(sectors):
        start, stop = max(number * SECTOR, change.offset), min((number + 1) * SECTOR, end)
        if len(data) < stop:
            _set_length(data, stop)
        data[start:stop] = change.data[start - change.offset : stop - change.offset]


def _set_length(data: bytearray, length: int) -> None:
    if length < len(data):
        del data[length:]
    else:
        data.extend(bytes(length - len(data)))
