"""The row tail: takes rows of the last block's residual sum to their logits, position by position.

It is a chain of the model's own modules, with the model's own steps between and behind them: a
factor, a bias or a soft cap. A model whose end is no such chain is its own tail: it runs on the
rows, without its blocks. Either is compared with the model's forward, and equals it up to rounding.
Leaves the search for the site at which rows do so to ``edit_site``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from continual import hooks
from continual.anatomy import Anatomy, observe, sample_inputs
from continual.errors import ModelError
from continual.passes.partial import capture_rows, finish, record

TailModule = Callable[[Tensor], Tensor]


class NeverRuns(ModelError):
    """A module that ``[anatomy]`` names does not run in a forward pass."""


@dataclass(frozen=True)
class RowTail:
    """Takes rows [n, d] of the last block's residual sum to their logits [n, vocab or labels].

    ``pooled`` is the position whose row a classifier looks at, 0 or -1 (the last that is not
    padding); None if every position has its own logits.
    """

    steps: tuple[TailModule, ...]
    pooled: int | None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits of each row, differentiable in ``hidden``."""
        state = hidden.unsqueeze(1)  # each row is a sequence of one position
        for step in self.steps:
            state = step(state)
        return state.flatten(1)


_ROUNDINGS = 8
"""Units in the last place by which a factor found by division may be off."""


def tail_steps(model: Any, anatomy: Anatomy) -> tuple[TailModule, ...]:
    """Return the modules of the tail, with the model's own steps between and behind them."""
    calls = dict(observe(model, sample_inputs(model, length=1)))
    if missing := [path for path in anatomy.tail if path not in calls]:
        raise NeverRuns(f"{missing[0]}, named under [anatomy], does not run in a forward pass.")
    place = anatomy.block_path(anatomy.last)
    norm_after = anatomy.norm_after is not None
    state = calls[anatomy.tail[0]].input if norm_after else calls[place].hidden
    steps: list[TailModule] = []
    for path, module in zip(anatomy.tail, anatomy.tail_modules(model), strict=True):
        joint = _joint(model, state, calls[path].input, f"between {place} and {path}")
        steps += [*joint, module]
        state, place = calls[path].hidden, path
    ending = _ending(model, state, calls[""].output.logits, f"behind {place}")
    return (*steps, *ending)


def model_as_tail(model: Any, anatomy: Anatomy) -> tuple[TailModule, ...]:
    """Return the model's own forward behind its last block as a step, for rows [n, 1, d] that are
    sequences of one token."""
    inputs = sample_inputs(model, length=1)
    recording = record(model, anatomy, inputs, ())
    norm = anatomy.norm_after_module(model, anatomy.last)

    def end(hidden: Tensor) -> Tensor:
        many = {name: ids.expand(len(hidden), -1) for name, ids in inputs.items()}
        with ExitStack() as stack:
            for index in range(anatomy.block_count):
                stack.enter_context(hooks.unhooked(anatomy.block(model, index)))
            return finish(model, anatomy, replace(recording, inputs=many), hidden)

    return (end,) if norm is None else (norm, end)


def _joint(model: Any, state: Tensor, target: Tensor, where: str) -> tuple[TailModule, ...]:
    """Return the steps, none or a factor, from the output [1, 1, .] of one module to the next one's
    input. Raises ``ModelError`` if neither fits."""
    state, target = state.flatten(), target.flatten()
    if state.shape == target.shape:
        factor = torch.dot(state.double(), target.double()) / state.double().square().sum()
        for steps in ((), (partial(operator.mul, factor.item()),)):
            if _fits(steps, state, target):
                return steps
    raise ModelError(
        f"The rows of {type(model).__name__} cannot be computed one by one: {where} the model does "
        "something that is neither a module, a factor, a bias nor a soft cap. If a norm, a "
        "projection or the head was not found, name it in cedit.toml under [anatomy]: "
        "norm_after, final_norm, head."
    )


def _ending(model: Any, state: Tensor, target: Tensor, where: str) -> tuple[TailModule, ...]:
    """Return the model's own steps on the logits: a soft cap, a bias (maybe zero), or a factor."""
    for cap in _soft_caps(model):
        steps: tuple[TailModule, ...] = (partial(_soft_cap, cap),)
        if _fits(steps, state.flatten(), target.flatten()):
            return steps
    for bias in (*model.parameters(recurse=False), *model.buffers(recurse=False)):
        steps = (partial(operator.add, bias),)
        same_width = bias.shape[-1:] == state.shape[-1:]
        if same_width and _fits(steps, state.flatten(), target.flatten()):
            return steps
    return _joint(model, state, target, where)


def _soft_caps(model: Any) -> list[float]:
    """Return the soft caps in a config, under any name: the cap of the logits is among them."""
    config = model.config.get_text_config().to_dict()
    caps = {key: config[key] for key in config if "cap" in key and "soft" in key.replace("_", "")}
    return [float(cap) for cap in caps.values() if isinstance(cap, int | float) and cap > 0]


def _fits(steps: tuple[TailModule, ...], state: Tensor, target: Tensor) -> bool:
    logits = RowTail(steps, None)(state.unsqueeze(0)).flatten()
    return is_close(logits, target, _ROUNDINGS * torch.finfo(state.dtype).eps)


def _soft_cap(cap: float, logits: Tensor) -> Tensor:
    return cap * torch.tanh(logits / cap)


@torch.no_grad()
def check_rows(
    model: Any, anatomy: Anatomy, inputs: Mapping[str, Tensor], tail: RowTail
) -> RowTail:
    """Return the tail with its pooled position, if its rows give the model's logits. Raises
    ``ModelError`` otherwise."""
    rows = capture_rows(model, anatomy, inputs, anatomy.last)
    logits = tail(rows.hidden[0])
    if rows.logits.ndim == 3 and is_close(logits, rows.logits[0]):
        return tail
    if rows.logits.ndim == 2:
        for position in (0, -1):
            if is_close(logits[position], rows.logits[0]):
                return RowTail(tail.steps, position)
    raise ModelError(
        f"{' → '.join(anatomy.tail)} does not give the logits of {type(model).__name__} row by "
        f"row: {distance_told(logits, rows.logits)}. If a module is missing, name it in "
        "cedit.toml under [anatomy]: norm_after, final_norm, head."
    )


def is_close(found: Tensor, expected: Tensor, tolerance: float | None = None) -> bool:
    """Tell whether both differ by rounding only, in units of the largest value.

    Unless given, half of the digits must agree: a missing module leaves none.
    """
    if found.shape != expected.shape:
        return False
    digits = math.sqrt(torch.finfo(expected.dtype).eps) if tolerance is None else tolerance
    return bool((found - expected).abs().max() <= digits * expected.abs().max())


def distance_told(found: Tensor, expected: Tensor) -> str:
    """Describe the distance of logits from the model's own, for a message."""
    if found.numel() != expected.numel():
        return f"shape {list(found.shape)} instead of {list(expected.shape)}"
    difference = (found.flatten() - expected.flatten()).abs().max().item()
    return f"they differ by {difference:.2g}, the largest is {expected.abs().max().item():.2g}"
