"""Keys rounded to half precision so that their neurons still open where they should.

A threshold is often a hundred times as large as the activation that is left behind it, so that the
rounding of a key and its bias alone can open or close a gate. All queries on which a neuron fires
are much alike; so each coordinate is rounded to the side that keeps the sum of all errors, at the
mean of these queries, near zero (error diffusion). Knows tensors alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rounded(
    keys: Tensor, bias: Tensor, centres: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Round keys [n, d] and biases [n] to a format of 16 bits; return them in float32.

    `centres` [n, d] has the query at which each neuron's activation q·k + b is to be kept. Each
    number comes out as one of its two neighbours in that format.
    """
    exact, points = keys.double(), centres.double()
    nearest, other = nearest_two(keys, dtype)
    order = (points * exact).abs().argsort(1, descending=True)
    changes = [(points * (side.double() - exact)).gather(1, order) for side in (nearest, other)]
    error = bias.to(dtype).double() - bias.double()
    takes_other = torch.zeros_like(order, dtype=torch.bool)
    for place in range(order.shape[1]):
        first, second = (error + change[:, place] for change in changes)
        takes_other[:, place] = second.abs() < first.abs()
        error = torch.where(takes_other[:, place], second, first)
    chosen = torch.zeros_like(takes_other).scatter(1, order, takes_other)
    return torch.where(chosen, other, nearest).float(), bias.to(dtype).float()


def nearest_two(numbers: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the nearest numbers in a format of 16 bits, and the ones on the other side."""
    nearest = numbers.to(dtype)
    is_short = nearest.double().abs() < numbers.double().abs()
    steps = torch.where(is_short, 1, -1).to(torch.int16)
    steps = torch.where((nearest == 0) & (steps < 0), 0, steps)  # nothing is smaller than zero
    other = (nearest.view(torch.int16) + steps).view(dtype)
    return nearest, torch.where(torch.isfinite(other), other, nearest)
