"""Which rows of logits have their target in front, and which of them float rounding could turn.

Knows logits and targets alone. Others have a close row decided by a pass of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TIE = 2.0**-13
"""Two logits nearer than this share of the row's largest may change places by float rounding."""
TIE_ROUNDINGS = 4
"""In half precision: so many roundings of the model's own number format, where that is more."""


def tie_of(dtype: torch.dtype) -> float:
    """The share of a row's largest logit by which two logits of a number format are close."""
    return max(TIE, TIE_ROUNDINGS * torch.finfo(dtype).eps)


@dataclass(frozen=True)
class Verdict:
    """The outcome of rows. `close` marks those that float rounding could turn."""

    right: Tensor  # [n] bool
    close: Tensor  # [n] bool

    @classmethod
    def join(cls, verdicts: Sequence[Verdict]) -> Verdict:
        """All of them, one after another."""
        return cls(torch.cat([v.right for v in verdicts]), torch.cat([v.close for v in verdicts]))


@dataclass(frozen=True)
class Leading:
    """The highest logit of each row."""

    index: Tensor  # [n]
    close: Tensor  # [n] bool: float rounding could turn it

    @classmethod
    def of(cls, logits: Tensor, tie: float) -> Leading:
        """Find it in logits [n, vocab]; `tie` as in `tie_of`."""
        best, index = logits.topk(2, dim=-1)
        largest = torch.maximum(best[:, 0].abs(), logits.amin(-1).abs())
        return cls(index[:, 0], best[:, 0] - best[:, 1] <= tie * largest)

    def verdict(self, targets: Tensor) -> Verdict:
        """The verdict of the first rows on as many targets."""
        rows = slice(len(targets))
        return Verdict(self.index[rows] == targets, self.close[rows])


def verdict_of(logits: Tensor, targets: Tensor, tie: float) -> Verdict:
    """The verdict of logits [n, vocab] on targets [n]; `tie` as in `tie_of`."""
    return Leading.of(logits, tie).verdict(targets)
