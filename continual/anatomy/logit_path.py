"""Finds the path from the last FFN, or from the last block, to the logits.

It is every module that runs behind: the norm behind the FFN's residual sum, if any, the final norm,
the head, and any other module that changes its input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from continual import hooks
from continual.anatomy.ffn import matrix_at
from continual.anatomy.module_paths import is_inside, is_norm, outermost_of
from continual.anatomy.observing import ModuleCalls
from continual.anatomy.overrides import module_at, optional_path


@dataclass(frozen=True)
class LogitPath:
    """The modules behind the last FFN, as `Anatomy` has them."""

    norm_after: str | None
    final_norm: str | None
    head: str | None
    tail: tuple[str, ...]


def find_logit_path(
    model: nn.Module, block: str, down: str | None, calls: ModuleCalls, chosen: Mapping[str, str]
) -> LogitPath:
    """Return the way from the output matrix of the FFN in the last block; from the block's end
    without one."""
    after = _calls_after(calls, block if down is None else f"{block}.{down}")
    norm_after = None if down is None else _norm_after(model, block, after, chosen)
    blocks = block.rpartition(".")[0] or block
    behind = [(path, call) for path, call in after[1:] if not is_inside(path, blocks)]
    tail = _tail(model, behind)
    norm = next((path for path in tail if is_norm(model.get_submodule(path))), None)
    final_norm = optional_path(model, "final_norm", chosen, norm)
    last_matrix = _last_matrix(model, behind)
    head = chosen.get("head") or last_matrix
    if head is not None:
        module_at(model, head, "head")
    if head is not None and (final_norm, head) != (norm, last_matrix):
        tail = (*([final_norm] if final_norm else []), head)
    norm_path = (f"{block}.{norm_after}",) if norm_after else ()
    return LogitPath(norm_after, final_norm, head, norm_path + tail)


def _calls_after(calls: ModuleCalls, path: str) -> ModuleCalls:
    """Return the call of ``path`` and all calls that began after it, so none of a module that
    contains it."""
    start = next(position for position, (name, _) in enumerate(calls) if name == path)
    later = [(name, call) for name, call in calls[start + 1 :] if not is_inside(path, name)]
    return [calls[start], *later]


def _norm_after(
    model: nn.Module, block: str, after: ModuleCalls, chosen: Mapping[str, str]
) -> str | None:
    """Return the first norm of the block whose input is more than the FFN's output alone."""
    (_, down), *rest = after
    norms = [
        path.removeprefix(f"{block}.")
        for path, call in rest
        if path.startswith(f"{block}.")
        and is_norm(model.get_submodule(path))
        and not torch.equal(call.input, down.hidden)
    ]
    return optional_path(model.get_submodule(block), "norm_after", chosen, next(iter(norms), None))


def _tail(model: nn.Module, behind: ModuleCalls) -> tuple[str, ...]:
    """Return the outermost modules that changed their input."""
    outermost = outermost_of(path for path, _ in behind)
    working = {path for path, call in behind if not _is_idle(model.get_submodule(path), call)}
    return tuple(path for path, _ in behind if path in outermost and path in working)


def _is_idle(module: nn.Module, call: hooks.Call) -> bool:
    """Tell whether a module passed its input on, as dropout does in eval mode."""
    bare = isinstance(call.output, Tensor) and not list(module.parameters())
    return bare and torch.equal(call.output, call.input)


def _last_matrix(model: nn.Module, behind: ModuleCalls) -> str | None:
    matrices = [path for path, _ in behind if matrix_at(path, model.get_submodule(path))]
    return matrices[-1] if matrices else None
