"""The cache: named sets of tensors that can be made again; they may be lost but are never wrong.

A name's file `NAME.json` says which blob beside it has its tensors; it is replaced whole, so a
reader finds the old set or the new one. Needs no writer's lock: the last writer wins. Leaves the
meaning of the tensors to others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store import canonical, durable
from store.blobs import SUFFIX, BlobRef, Blobs
from store.errors import IntegrityError, StoreError, reading

if TYPE_CHECKING:
    from torch import Tensor

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True)
class Cached:
    """A set of tensors as it was put."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    digest: str  # SHA-256 of the file that holds both
    path: Path  # that file


class Cache:
    """The sets of tensors under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
        """Write a set durably in place of the old one of this name, and return its digest.

        Raises StoreError for a bad name, NaN or Inf; then StoreFull or StorageFault.
        """
        pointer = self._pointer(name)
        blobs = Blobs(pointer.parent)
        previous_ref = _known(pointer)
        durable.make_folder_durably(pointer.parent)
        for folder in (self.root, pointer.parent):  # their makers may have been killed
            durable.sync_folder_durably(folder)
        ref = blobs.put(tensors, meta)
        durable.write_durably(pointer, canonical.dumps(asdict(ref)))
        if previous_ref is not None and previous_ref != ref:
            blobs.path(previous_ref.sha256).unlink(missing_ok=True)
        return ref.sha256

    def get(self, name: str) -> Cached | None:
        """Return the set of this name, or None. Raises IntegrityError for one that is damaged."""
        pointer = self._pointer(name)
        with reading(pointer):
            if not pointer.exists():
                return None
        blobs = Blobs(pointer.parent)
        ref = _read(pointer)
        tensors, meta = blobs.get(ref)
        return Cached(tensors, meta, ref.sha256, blobs.path(ref.sha256))

    def drop(self, name: str) -> None:
        """Remove a set, damaged or not, for good. A missing one is no error."""
        pointer = self._pointer(name)
        ref = _known(pointer)
        blob = [] if ref is None else [Blobs(pointer.parent).path(ref.sha256)]
        durable.remove_durably([pointer, *blob])

    def names(self) -> Iterator[str]:
        """Yield the names of all sets, damaged or not."""
        for pointer in sorted(self.root.glob("*/*.json")):
            name = pointer.relative_to(self.root).as_posix().removesuffix(".json")
            if _NAME.fullmatch(name):
                yield name

    def files(self, name: str) -> list[Path]:
        """Return the existing files of a name. Raises StoreError if they may not be looked at."""
        pointer = self._pointer(name)
        ref = _known(pointer)
        blob = [] if ref is None else [Blobs(pointer.parent).path(ref.sha256)]
        with reading(pointer):
            return [path for path in (pointer, *blob) if path.exists()]

    def loose(self) -> list[Path]:
        """Return the blobs that no name leads to, and the files of names that lead nowhere."""
        named_files = {path for name in self.names() for path in self.files(name)}
        blobs = set(self.root.glob(f"*/??/*{SUFFIX}"))
        dead_pointers = {path for path in self.root.glob("*/*.json") if _known(path) is None}
        return sorted((blobs - named_files) | dead_pointers)

    def _pointer(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise StoreError(
                f"{name!r} can't name what is cached: it is FOLDER/NAME of small letters, digits "
                "and '-'"
            )
        return self.root / f"{name}.json"


def _known(pointer: Path) -> BlobRef | None:
    """Return the blob that a name stands for now; None for a missing or damaged name."""
    try:
        with reading(pointer):
            return _read(pointer) if pointer.exists() else None
    except IntegrityError:
        return None


def _read(pointer: Path) -> BlobRef:
    label = f"{pointer.parent.name}/{pointer.name}"
    try:
        pointer_entry = canonical.loads(pointer.read_bytes())
        ref = BlobRef(pointer_entry["sha256"], pointer_entry["length"])
        Blobs(pointer.parent).path(ref.sha256)
    except OSError as error:
        raise IntegrityError(label, f"can't be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, IntegrityError) as error:
        raise IntegrityError(label, "does not say which blob it means") from error
    return ref
