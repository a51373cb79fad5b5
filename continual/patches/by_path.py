"""The file format of patches whose tensors are whole parameters: names by path, with blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from continual.errors import EditError


def meta_of(blocks: Mapping[str, int]) -> dict[str, Any]:
    """Return the block of each path, as `Patch.meta` has it."""
    return {"parameters": {path: blocks[path] for path in sorted(blocks)}}


def read(
    tensors: Mapping[str, Tensor], meta: Mapping[str, Any], source: str
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the tensors of a file and their blocks, by path. Raises EditError, which names the
    `source`, if one is missing."""
    try:
        blocks = {str(path): int(block) for path, block in meta["parameters"].items()}
        return {path: tensors[path] for path in blocks}, blocks
    except KeyError as error:
        raise EditError(f"A {source} has no {error}: its file is not one of ours.") from None
