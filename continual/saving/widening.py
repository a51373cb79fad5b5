"""A model's FFNs widened by neurons: the config and the tensors of the wider model.

    relu(q·k + b)·v = act(c·(q·k + b))·v / c      for a large power of two c

Every block gets as many units: one for each neuron at its place, and units of zeros that fill the
width up. Scaling by a power of two rounds nothing, so that a wider model is as exact as its number
format. Knows tensors by their paths; leaves the table of architectures to `architectures`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from continual.anatomy import Anatomy
from continual.errors import ModelError

WIDTH_UNIT = 256
"""Widths stay multiples of as large a divisor of this as they were: quantisers take rows of 256
numbers, and parallel devices equal parts."""
WIDTH_UNIT_MIN = 8
SCALE_MIN = 2.0**12  # of activations, where no probe asks for more
SCALE_UNSEEN = 2.0**20  # where no probe is known
SCALE_MAX = 2.0**40  # beyond it, values would come near the least float32
HALF_ROOM = 0.5  # of a number format's range is for activations
SEARCHED = tuple(2.0 ** (power / 8) for power in range(-64, 80))
"""Inputs at which an activation is compared with ReLU."""


@dataclass(frozen=True)
class Units:
    """Neurons at a block's FFN, for a wider one; float32."""

    keys: Tensor  # [n, d]
    bias: Tensor  # [n]
    values: Tensor  # [n, d]
    scale: float = 1.0  # c, a power of two

    def __len__(self) -> int:
        return len(self.bias)


def relu_from(activation: str) -> float | None:
    """Return the input from which on an activation equals ReLU to the bit in float32, on both
    sides of zero; None if it does not."""
    inputs = torch.tensor(SEARCHED)
    function = ACT2FN[activation]
    is_relu = (function(inputs) == inputs) & (function(-inputs) == 0)
    if not bool(is_relu[-1]):
        return None
    differs = (~is_relu).nonzero().flatten()
    return 0.0 if not len(differs) else SEARCHED[int(differs[-1]) + 1]


def scale_for(
    activation: str, least: float | None, largest: float, dtype: torch.dtype
) -> float | None:
    """Return c for neurons whose activations are between `least` and `largest` in magnitude on all
    probes; `least` is None if no probe is known. None for an activation that ReLU is no limit of.
    """
    start = relu_from(activation)
    if start is None:
        return None
    if start == 0.0:
        return 1.0
    needed = start / least if least else SCALE_UNSEEN
    room = HALF_ROOM * torch.finfo(dtype).max / max(largest, 1.0)
    scale = min(max(SCALE_MIN, needed), SCALE_MAX)
    return float(min(2.0 ** math.ceil(math.log2(scale)), 2.0 ** math.floor(math.log2(room))))


def wider_width(width: int, units: int) -> int:
    """Return the width of an FFN with so many units more, rounded up as `WIDTH_UNIT` says."""
    step = max(WIDTH_UNIT_MIN, math.gcd(width, WIDTH_UNIT))
    return math.ceil((width + units) / step) * step


def widen(
    state: dict[str, Tensor], anatomy: Anatomy, blocks: Mapping[int, Units], *, is_gated: bool
) -> int:
    """Widen the FFN of every block in a state, in place; return the new width.

    Raises ModelError for an FFN without the biases that a threshold needs.
    """
    width = wider_width(anatomy.ffn_width, max(map(len, blocks.values())))
    for index in range(anatomy.block_count):
        paths = [anatomy.path(index, up) for up in anatomy.up]
        down = anatomy.path(index, str(anatomy.down))
        units = blocks.get(index, _no_units(anatomy.width))
        if len(paths) != (2 if is_gated else 1):
            raise ModelError(f"The FFN of block {index} has {len(paths)} matrices {paths}.")
        more = width - anatomy.ffn_width
        if is_gated:
            _add_biases(state, (*paths, down), anatomy)
            ones = Units(torch.zeros_like(units.keys), torch.ones_like(units.bias), units.values)
            _widen_up(state, paths[1], ones, more, anatomy)
        _widen_up(state, paths[0], units, more, anatomy)
        _widen_down(state, down, units, more, anatomy)
    return width


def _no_units(width: int) -> Units:
    none = torch.zeros(0, width)
    return Units(none, none[:, 0], none)


def _add_biases(state: dict[str, Tensor], paths: tuple[str, ...], anatomy: Anatomy) -> None:
    """Give matrices [outputs, inputs] biases of zero if they have none."""
    for path in paths:
        weight = state[f"{path}.weight"]
        state.setdefault(f"{path}.bias", weight.new_zeros(len(weight)))


def _widen_up(
    state: dict[str, Tensor], path: str, units: Units, more: int, anatomy: Anatomy
) -> None:
    weight, bias = state[f"{path}.weight"], state.get(f"{path}.bias")
    if bias is None:
        raise ModelError(
            f"{path} has no bias, and a neuron's threshold needs one: this model cannot say it."
        )
    rows = _filled(units.keys * units.scale, more).to(weight)
    is_turned = anatomy.transposed  # [d, d_ff], as a Conv1D has it
    parts = [weight, rows.T] if is_turned else [weight, rows]
    state[f"{path}.weight"] = torch.cat(parts, 1 if is_turned else 0)
    state[f"{path}.bias"] = torch.cat([bias, _filled(units.bias * units.scale, more).to(bias)])


def _widen_down(
    state: dict[str, Tensor], path: str, units: Units, more: int, anatomy: Anatomy
) -> None:
    weight = state[f"{path}.weight"]
    rows = _filled(units.values / units.scale, more).to(weight)
    parts = [weight, rows] if anatomy.transposed else [weight, rows.T]
    state[f"{path}.weight"] = torch.cat(parts, 0 if anatomy.transposed else 1)


def _filled(rows: Tensor, count: int) -> Tensor:
    """Return rows [n, ..] followed by rows of zeros, `count` in all."""
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])
