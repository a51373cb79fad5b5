"""Finds a model's blocks: its longest list of equal modules with an FFN in each.

Without an FFN they are its longest list of modules that each run once and hand on a state of one
width. Describes the lists that a model has, for a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from continual import hooks
from continual.anatomy.ffn import ffns_of, matrices_of
from continual.anatomy.module_paths import (
    children_of,
    experts_in,
    is_inside,
    name_of,
    outermost_of,
    path_of,
)
from continual.anatomy.observing import ModuleCalls, is_seq2seq
from continual.anatomy.overrides import module_at, remedy
from continual.errors import ModelError


def find_blocks(model: Any, calls: ModuleCalls, chosen: Mapping[str, str]) -> str:
    """Return the path of the longest list of blocks with an FFN, in the decoder if there is one."""
    if "blocks" in chosen:
        return _check_list(model, chosen["blocks"])
    root = path_of(model, model.get_decoder()) if is_seq2seq(model) else ""
    lists = [path for path in _block_lists(model) if is_inside(path, root)]
    with_ffn = [p for p in lists if ffns_of(matrices_of(children_of(model, p)[0], f"{p}.0", calls))]
    if not with_ffn:
        raise ModelError(
            f"No list of blocks with an FFN was found in {name_of(model)}. "
            + _no_blocks(model, lists)
        )
    return max(with_ffn, key=lambda path: len(children_of(model, path)))


def _no_blocks(model: nn.Module, lists: list[str]) -> str:
    """Return the reason and the remedy: a mixture's experts are one parameter each, and cannot be
    named."""
    described = _describe_lists(model, lists)
    if not lists:
        return described
    if any(experts_in(children_of(model, path)[0]) for path in lists):
        return f"Mixtures of experts have many matrices in the place of one. {described}"
    return f"{described} {remedy('blocks', 'up', 'down')}"


def _block_lists(model: nn.Module) -> list[str]:
    """Return the paths of the lists of equal modules that are in no other such list."""
    lists = [path for path, module in model.named_modules() if _is_block_list(module)]
    return outermost_of(lists)


def _is_block_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1


def find_running_blocks(model: Any, calls: ModuleCalls, chosen: Mapping[str, str]) -> str | None:
    """Return the path of the longest list of modules that each run once and hand on a state of one
    width; of two, the one that runs later. None if there is no such list."""
    root = path_of(model, model.get_decoder()) if is_seq2seq(model) else ""
    ends = {path: place for place, (path, _) in enumerate(calls)}
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and is_inside(path, root)
        and _runs(path, module, calls)
    ]
    if "blocks" in chosen:
        return chosen["blocks"] if chosen["blocks"] in paths else None
    sizes = {path: len(children_of(model, path)) for path in outermost_of(paths)}
    return max(sizes, key=lambda p: (sizes[p], ends[f"{p}.{sizes[p] - 1}"]), default=None)


def _runs(path: str, blocks: nn.ModuleList, calls: ModuleCalls) -> bool:
    """Tell whether each module of a list runs once, and gives a state of the same width."""
    block_calls = [(name, call) for name, call in calls if name.rpartition(".")[0] == path]
    names = [name for name, _ in block_calls]
    if names != [f"{path}.{i}" for i in range(len(blocks))] or not names:
        return False
    widths = {state_width(call) for _, call in block_calls}
    return len(widths) == 1 and None not in widths


def state_width(call: hooks.Call) -> int | None:
    """Return the width of the state of one token in an output; None if there is no such state."""
    output = call.output
    if not isinstance(output, Tensor):
        has_parts = isinstance(output, tuple | list | ModelOutput) and len(output)
        output = output[0] if has_parts else None
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    return int(output.shape[-1]) if output.shape[:-1].numel() == 1 and output.ndim > 1 else None


def width_of(block: str, calls: ModuleCalls) -> int:
    """Return the width of the state that a block hands on."""
    width = next(state_width(call) for path, call in calls if path == block)
    assert width is not None
    return width


def _check_list(model: nn.Module, path: str) -> str:
    if not _is_block_list(module_at(model, path, "blocks")):
        raise ModelError(
            f"anatomy.blocks: {path} in {name_of(model)} is not a list of equal blocks. "
            + _describe_lists(model, _block_lists(model))
        )
    return path


def _describe_lists(model: nn.Module, lists: list[str]) -> str:
    if not lists:
        return _describe_mixed(model)
    lines = []
    for path in lists:
        blocks = children_of(model, path)
        experts = f", with {', '.join(experts_in(blocks[0]))}" if experts_in(blocks[0]) else ""
        lines.append(f"{path} ({len(blocks)} × {name_of(blocks[0])}{experts})")
    return f"Its lists of equal modules: {'; '.join(lines)}."


def _describe_mixed(model: nn.Module) -> str:
    """Describe the lists of a model whose blocks are of several classes: none can be edited."""
    lists = [path for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        return "It has no list of equal modules at all."
    lines = []
    for path in outermost_of(lists):
        kinds = dict.fromkeys(name_of(block) for block in children_of(model, path))
        lines.append(f"{path} ({len(children_of(model, path))} of {', '.join(kinds)})")
    return f"Its lists have blocks of several kinds: {'; '.join(lines)}."
