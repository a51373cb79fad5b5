"""Finds the FFN of a block: its widest pair of matrices d → d_ff → d outside attention.

Knows how a layer stores its matrix. Leaves the site that the FFN gives to ``structure``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from continual.anatomy.module_paths import children_of, experts_in, is_attention, is_inside
from continual.anatomy.observing import ModuleCalls
from continual.anatomy.overrides import module_at, remedy, split_paths
from continual.errors import ModelError


def is_turned(model: nn.Module, path: str) -> bool | None:
    """Tell whether the matrix at a path is stored as [outputs, inputs], as a linear layer's is; a
    `Conv1D` and an embedding store [inputs, outputs]. None for a parameter that is no matrix of
    such a layer."""
    parent, _, name = path.rpartition(".")
    module = model.get_submodule(parent)
    if name != "weight":
        return None
    if isinstance(module, nn.Embedding):
        return False
    matrix = matrix_at(parent, module)
    return None if matrix is None else not matrix.transposed


@dataclass(frozen=True)
class FfnMatrix:
    """A matrix of a block that runs once: its path inside the block and its size."""

    path: str  # inside the block
    inputs: int
    outputs: int
    transposed: bool

    def __str__(self) -> str:
        return f"{self.path} ({self.inputs} → {self.outputs})"


@dataclass(frozen=True)
class Ffn:
    """The matrices of an FFN d → d_ff → d, by their paths inside the block."""

    width: int
    ffn_width: int
    up: tuple[str, ...]
    down: str
    transposed: bool


def find_ffn(model: nn.Module, blocks: str, calls: ModuleCalls, chosen: Mapping[str, str]) -> Ffn:
    """Return the FFN of the first block. Raises ModelError if another block does not have it."""
    children = children_of(model, blocks)
    ffn = _choose_ffn(children[0], f"{blocks}.0", calls, chosen)
    for index, block in enumerate(children):
        path = f"{blocks}.{index}"
        if ffn not in _named(
            ffns_of(matrices_of(block, path, calls, attention=True)), ffn.up, ffn.down
        ):
            raise ModelError(
                f"{path} has not the FFN of the first block, {', '.join(ffn.up)} → {ffn.down} of "
                f"width {ffn.ffn_width}: blocks must be equal and run once in a forward pass. "
                + _describe_block(block, path, calls)
            )
    return ffn


def _choose_ffn(block: nn.Module, path: str, calls: ModuleCalls, chosen: Mapping[str, str]) -> Ffn:
    up, down = split_paths(chosen.get("up")), chosen.get("down")
    for key, part in [*(("up", part) for part in up), *([("down", down)] if down else [])]:
        module_at(block, part, key)
    overridden = bool(up or down)
    matches = _named(ffns_of(matrices_of(block, path, calls, attention=overridden)), up, down)
    widest = [ffn for ffn in matches if ffn.ffn_width == max(ffn.ffn_width for ffn in matches)]
    square = any(ffn.width == ffn.ffn_width for ffn in widest)
    if not widest or (len(widest) > 1 and not square) or (experts_in(block) and not overridden):
        raise ModelError(
            f"{path} should have one FFN d → d_ff → d, and has {len(widest)} that fit. "
            f"{_describe_block(block, path, calls)} {remedy('up', 'down')}"
        )
    return widest[-1]


def ffns_of(matrices: list[FfnMatrix]) -> list[Ffn]:
    """Return every matrix d_ff → d behind one or more of d → d_ff, in the order in which they
    run."""
    ffns = []
    for position, down in enumerate(matrices):
        shapes = (
            (down.outputs, down.inputs),
            (down.outputs, 2 * down.inputs),
        )  # gate and up in one
        up = [m.path for m in matrices[:position] if (m.inputs, m.outputs) in shapes]
        if up:
            ffns.append(Ffn(down.outputs, down.inputs, tuple(up), down.path, down.transposed))
    return ffns


def _named(found: list[Ffn], up: tuple[str, ...], down: str | None) -> list[Ffn]:
    """Return the FFNs that have the named matrices, with only these as ``up``."""
    return [
        Ffn(ffn.width, ffn.ffn_width, up or ffn.up, ffn.down, ffn.transposed)
        for ffn in found
        if down in (None, ffn.down) and set(up) <= set(ffn.up)
    ]


def matrices_of(
    block: nn.Module, path: str, calls: ModuleCalls, attention: bool = False
) -> list[FfnMatrix]:
    """Return the matrices of a block that run once, in order; attention's only if asked for."""
    hidden = [] if attention else [p for p, m in block.named_modules() if p and is_attention(m)]
    ran = [name.removeprefix(f"{path}.") for name, _ in calls if name.startswith(f"{path}.")]
    once = [name for name in ran if ran.count(name) == 1 and not is_inside(name, *hidden)]
    return [m for name in once if (m := matrix_at(name, block.get_submodule(name)))]


def matrix_at(path: str, module: nn.Module) -> FfnMatrix | None:
    """Return the matrix of a linear layer at a path; None for any other module."""
    if isinstance(module, nn.Linear):
        return FfnMatrix(path, module.in_features, module.out_features, transposed=False)
    if isinstance(module, Conv1D):
        inputs, outputs = module.weight.shape
        return FfnMatrix(path, int(inputs), int(outputs), transposed=True)
    return None


def _describe_block(block: nn.Module, path: str, calls: ModuleCalls) -> str:
    matrices = ", ".join(map(str, matrices_of(block, path, calls))) or "none"
    experts = experts_in(block)
    mixture = f" Its {', '.join(experts)} are a mixture." if experts else ""
    return f"Its matrices outside attention that run once: {matrices}.{mixture}"
