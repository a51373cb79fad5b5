"""Rows rounded to a byte a number, and upper bounds on their inner products.

A row is x = s·u + e: whole numbers u from -127 to 127 in steps of s, and an error; a key likewise k
= t·w + f. So x·k = s·t·(u·w) + s·(u·f) + e·k, where the last two are at most s·‖u‖‖f‖ + ‖e‖‖k‖
(Cauchy and Schwarz). u·w is a product of bytes: it reads a quarter of the rows' own bytes, and CPUs
have units for it.

Knows numbers alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from continual.queries.growing import GrowingTensor

STEPS = 127  # of the largest number in a row
FEW = 8  # keys


class CodedRows:
    """Rows [m, d] that grow at the end."""

    def __init__(self, like: Tensor) -> None:
        """Begin without rows. `like` [d] gives width, dtype and device."""
        self._codes = GrowingTensor(like.new_empty(0, len(like), dtype=torch.int8))  # u
        self._steps = GrowingTensor(like.new_empty(0))  # s
        self._longest = 0.0  # ‖u‖, over all rows ever held
        self._worst = 0.0  # ‖e‖/s, likewise

    def append(self, rows: Tensor) -> None:
        """Put rows at the end."""
        if len(rows) == 0:
            return
        codes, steps = self._seen(rows)
        self._codes.append(codes)
        self._steps.append(steps)

    def put(self, index: Tensor, rows: Tensor) -> None:
        """Put other rows in the places `index` [r]."""
        if len(index) == 0:
            return
        codes, steps = self._seen(rows)
        self._codes.rows[index] = codes
        self._steps[index] = steps

    def _seen(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes of rows, and their steps; the bounds hold for them from now on."""
        codes, steps, errors = _coded(rows)
        self._longest = max(self._longest, float(torch.linalg.vector_norm(codes, dim=1).max()))
        self._worst = max(self._worst, float(errors.max()))
        return codes.to(torch.int8), steps

    def truncate(self, size: int) -> None:
        """Drop rows as `GrowingTensor.truncate` does."""
        self._codes.truncate(size)
        self._steps.truncate(size)

    def bounds(self, keys: Tensor) -> Tensor:
        """Return [n, m] upper bounds on x·k for keys [n, d], up to float rounding."""
        codes, steps, errors = _coded(keys)
        lengths = torch.linalg.vector_norm(keys, dim=1) / steps
        slack = self._longest * errors + self._worst * lengths  # in steps of both
        scores = self._products(codes.to(torch.int8)).to(keys.dtype)
        scores += slack[:, None]
        scores *= self._steps.rows
        scores *= steps[:, None]
        return scores

    def _products(self, codes: Tensor) -> Tensor:
        """Return [n, m] int32: u·w for w [n, d]. For few keys, row by row is the quicker way."""
        if len(codes) > FEW:
            return torch._int_mm(codes, self._codes.rows.T)
        return torch._int_mm(self._codes.rows, codes.T.contiguous()).T.contiguous()


def _coded(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return whole numbers [r, d], the steps [r] that they count, and the lengths [r] of the
    rounding errors, in these steps."""
    steps = (vectors.abs().amax(1) / STEPS).clamp(min=torch.finfo(vectors.dtype).tiny)
    exact = vectors / steps[:, None]
    codes = exact.round()
    errors: Tensor = torch.linalg.vector_norm(exact - codes, dim=1)
    return codes, steps, errors
