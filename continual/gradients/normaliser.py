"""The lifelong normaliser: mean and standard deviation of every coordinate over all rows so far.

One for each shape of matrices. It is made of the rows themselves, in their order, in float64: the
same bits whether the rows came step by step, from a snapshot, or all at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-7
"""Added to counts and deviations, as published."""
CHUNK = 4096  # rows that are turned into float64 at a time


@dataclass(frozen=True)
class Normaliser:
    """The statistics of rows [inputs + outputs]."""

    count: int
    mean: Tensor  # [inputs + outputs] float64
    deviation: Tensor  # [inputs + outputs] float64

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> Normaliser:
        """Take in rows [m, inputs + outputs], part after part; at least one row."""
        count = sum(map(len, parts))
        mean = _total(chunk.double().sum(0) for chunk in _chunks(parts)) / count
        squares = _total((chunk.double() - mean).square().sum(0) for chunk in _chunks(parts))
        return cls(count, mean, (squares / (count - 1 + EPSILON)).sqrt())

    def normalised(self, rows: Tensor) -> Tensor:
        """Return (z - mean)/(deviation + ε) [m, inputs + outputs] float64."""
        return (rows.double() - self.mean) / (self.deviation + EPSILON)


def _chunks(parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """Cut all rows into chunks that do not depend on the parts."""
    rows = torch.cat(list(parts))
    yield from rows.split(CHUNK)


def _total(sums: Iterator[Tensor]) -> Tensor:
    total = next(sums)
    for part in sums:
        total = total + part
    return total
