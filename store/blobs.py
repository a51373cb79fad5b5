"""Content-addressed, write-once files of tensors: `ab/<sha256>.safetensors`.

Writes equal tensors as equal bytes, and checks every byte that it reads back. Leaves the meaning of
the tensors to others. The digest of a file is its name, so `sha256sum` checks it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store import canonical, durable
from store.errors import IntegrityError, StoreError, reading

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"
_META_KEY = "cedit"
_HEADER_LENGTH_BYTES = 8
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DIGEST_IN_TEXT = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_BEGINNING = re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True)
class BlobRef:
    """The journal's reference to a blob: enough to find it and to recognise it."""

    sha256: str
    length: int  # bytes


class Blobs:
    """The blobs under one folder."""

    def __init__(self, root: Path, kind: str = "patches") -> None:
        """`kind` names the blobs in messages."""
        self.root, self.kind = root, kind

    def put(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> BlobRef:
        """Write the tensors durably. Raises StoreError for a bad name, NaN or Inf; then StoreFull
        or StorageFault. Writing the same tensors again costs a read and no write."""
        data = _encode(tensors, meta)
        ref = BlobRef(canonical.digest(data), len(data))
        path = self.path(ref.sha256)
        if self._holds(path, data):
            durable.sync_file_durably(path)
        else:
            durable.place_durably(path, data)
        return ref

    def get(self, ref: BlobRef) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and their meta, on the CPU.

        Raises IntegrityError naming the blob, StoreError for one that may not be read.
        """
        data = self._read(ref)
        try:
            tensors = _decode(data)
            meta = _checked_meta(data)
            _require_finite(tensors)
        except (ValueError, StoreError) as error:
            raise IntegrityError(self.label(ref.sha256), str(error)) from error
        return tensors, meta

    def path(self, sha256: str) -> Path:
        """Return the path of a blob. Raises IntegrityError if `sha256` is no digest."""
        if not _DIGEST.fullmatch(sha256):
            raise IntegrityError(self.kind, f"{sha256!r} is not a digest")
        return self.root / sha256[:2] / f"{sha256}{SUFFIX}"

    def label(self, sha256: str) -> str:
        """Return the name of a blob in messages: its path within the store."""
        return self.path(sha256).relative_to(self.root.parent).as_posix()

    def digests(self) -> Iterator[str]:
        """Yield the digests of the blobs on disk, referenced or not, in order."""
        for path in sorted(self.root.glob(f"??/*{SUFFIX}")):
            if _DIGEST.fullmatch(path.stem) and path.parent.name == path.stem[:2]:
                yield path.stem

    def starting_with(self, digits: str) -> list[str]:
        """Return the digests on disk that begin with these digits, four or more, in order. Empty
        for a text that begins no digest."""
        if not _BEGINNING.fullmatch(digits):
            return []
        with reading(self.root):
            paths = sorted((self.root / digits[:2]).glob(f"{digits}*{SUFFIX}"))
        return [path.stem for path in paths if _DIGEST.fullmatch(path.stem)]

    def ref(self, sha256: str) -> BlobRef:
        """Return the reference to a blob on disk, as long as its file is. Raises IntegrityError if
        there is none."""
        try:
            return BlobRef(sha256, self.path(sha256).stat().st_size)
        except OSError as error:
            problem = f"can't be read ({error.strerror})"
            raise IntegrityError(self.label(sha256), problem) from error

    def _holds(self, path: Path, data: bytes) -> bool:
        with reading(path):
            return path.is_file() and path.read_bytes() == data

    def _read(self, ref: BlobRef) -> bytes:
        label = self.label(ref.sha256)
        try:
            data = self.path(ref.sha256).read_bytes()
        except PermissionError as error:  # no sign of damage
            text = f"{label} can't be read: {error.strerror}; check its owner and permissions"
            raise StoreError(text) from error
        except OSError as error:
            raise IntegrityError(label, f"can't be read ({error.strerror})") from error
        if len(data) != ref.length:
            raise IntegrityError(label, f"has {len(data)} bytes where {ref.length} were written")
        if canonical.digest(data) != ref.sha256:
            raise IntegrityError(label, "its bytes are not those that were written")
        return data


def digests_named(record: Any) -> set[str]:
    """Return the digests that a JSON value names anywhere in its texts."""
    return set(_DIGEST_IN_TEXT.findall(json.dumps(record)))


def digest_of(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Return the digest of the blob that these tensors would be. Raises StoreError for a bad name,
    NaN or Inf."""
    return canonical.digest(_encode(tensors, meta))


def _encode(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    import safetensors.torch

    _require_names(tensors)
    # A clone of its own for each: safetensors refuses tensors that share memory.
    clones = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    _require_finite(clones)
    # One metadata key only: with several, their order differs from save to save.
    text = canonical.dumps(dict(meta)).decode("utf-8")
    data: bytes = safetensors.torch.save(clones, metadata={_META_KEY: text})
    return data


def _decode(data: bytes) -> dict[str, Tensor]:
    import safetensors
    import safetensors.torch

    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"not safetensors ({error})") from error
    return tensors


def _checked_meta(data: bytes) -> dict[str, Any]:
    """Return the blob's meta. Raises for repeated keys and stray names, which the parser allows."""
    end = _HEADER_LENGTH_BYTES + int.from_bytes(data[:_HEADER_LENGTH_BYTES], "little")
    header = json.loads(data[_HEADER_LENGTH_BYTES:end], object_pairs_hook=_without_repeats)
    metadata = header.pop("__metadata__", {})
    _require_names(header)
    meta = canonical.loads(metadata.get(_META_KEY, "{}").encode("utf-8"))
    if not isinstance(meta, dict):
        raise ValueError("its meta is not an object")
    return meta


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    header = dict(pairs)
    if len(header) != len(pairs):
        raise ValueError("its header repeats a key")
    return header


def _require_names(names: Iterable[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name) or ".." in name:
            raise StoreError(
                f"{name!r} can't name a tensor: use letters, digits, '_', '-' and single dots"
            )


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        values = tensor.float() if tensor.element_size() == 1 else tensor
        if not bool(values.isfinite().all()):
            raise StoreError(f"tensor {name!r} holds NaN or infinity: it can't be a patch")
