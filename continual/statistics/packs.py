"""A pack: the key statistics of some blocks of one base model as one file, for other stores.

The file is safetensors with canonical JSON beside the matrices: the base model, and for each block
its site, its text (by digest), the tokens, and the digest that the statistics have in a store's
cache. The same statistics give the same bytes, so that the pack's own SHA-256 names them. A store
takes in a pack of its own base model alone, and has the same digests afterwards. Leaves collecting
to ``collecting``, and reading from the cache to ``kept``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from continual.errors import CeditError
from store import canonical, write_durably

_META_KEY = "cedit"
_KIND = "key statistics"
_FORMAT = 1
_HEADER_LENGTH_BYTES = 8


class PackError(CeditError):
    """A file that is no pack of statistics, or one that this store has no use for."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"{path} {cause}: name a pack that `cedit train stats --out FILE` wrote on this base "
            "model, or collect statistics with `cedit train stats --text FILE`."
        )


@dataclass(frozen=True)
class PackedBlock:
    """The statistics of one block in a pack."""

    block: int
    moment: Tensor  # [d_ff, d_ff] float64
    meta: Mapping[str, Any]  # as in a store's cache: base, site, text, count, convergence
    digest: str  # SHA-256 of the file that has them in a store's cache


def write(path: Path, base: str, blocks: Sequence[PackedBlock]) -> str:
    """Write a pack, whole or not at all, and return its SHA-256. `base` is the fingerprint of the
    base model. Raises StoreFull or StorageFault."""
    entries = [{"block": b.block, "meta": dict(b.meta), "digest": b.digest} for b in blocks]
    meta = {"kind": _KIND, "format": _FORMAT, "base": base, "blocks": entries}
    tensors = {_name_of(b.block): b.moment.cpu().contiguous() for b in blocks}
    content: bytes = save(tensors, metadata={_META_KEY: canonical.dumps(meta).decode()})
    write_durably(path, content)
    return hashlib.sha256(content).hexdigest()


def read(path: Path, base: str) -> list[PackedBlock]:
    """Read a pack for the base model with this fingerprint. Raises PackError for a file that cannot
    be read, is no pack, has another format, or is of another base model."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PackError(path, f"cannot be read ({error.strerror})") from error
    try:
        meta = _meta_of(content)
        _require(path, meta, base)
        tensors = load(content)
        return [_block_of(entry, tensors) for entry in meta["blocks"]]
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise PackError(path, f"is no pack of key statistics ({error})") from error


def _meta_of(content: bytes) -> Mapping[str, Any]:
    """Return the JSON beside the matrices. Raises ValueError, KeyError or TypeError."""
    end = _HEADER_LENGTH_BYTES + int.from_bytes(content[:_HEADER_LENGTH_BYTES], "little")
    header = canonical.loads(content[_HEADER_LENGTH_BYTES:end].rstrip())
    meta = canonical.loads(header["__metadata__"][_META_KEY].encode())
    if not isinstance(meta, Mapping) or meta.get("kind") != _KIND:
        raise ValueError("its header does not say that it is one")
    return meta


def _require(path: Path, meta: Mapping[str, Any], base: str) -> None:
    """Raise PackError for another format, or another base model."""
    if meta["format"] != _FORMAT:
        raise PackError(path, f"is a pack of format {meta['format']}, and {_FORMAT} is read here")
    if meta["base"] != base:
        of_pack = str(meta["base"])[:12]
        raise PackError(
            path, f"was collected on the base model {of_pack}, and this store's is {base[:12]}"
        )


def _block_of(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PackedBlock:
    block = int(entry["block"])
    return PackedBlock(block, tensors[_name_of(block)], dict(entry["meta"]), str(entry["digest"]))


def _name_of(block: int) -> str:
    return f"block-{block}"
