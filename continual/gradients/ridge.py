"""The ridge system of an update, in float64: from inputs to the left factor of ΔW.

With inputs H [n, inputs] and wanted shifts V [n, outputs] of a batch, and past inputs M of earlier
edits, ΔW = A·V is the minimiser of

    ‖HΔ − V‖² + ‖MΔ‖² + λ‖Δ‖² + μ·tr(ΔᵀC₀Δ),   A = (λI + μC₀ + MᵀM + HᵀH)⁻¹Hᵀ

so that past inputs ask for no further change, and inputs of the base for little. Knows nothing of
models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from continual.errors import EditError


class Unsolvable(EditError):
    """A batch whose update cannot be computed."""


@dataclass(frozen=True)
class Prior:
    """λI + μC₀: the part of a system that no edit changes."""

    ridge: float
    moment: Tensor | None = None  # μC₀ [inputs, inputs] float64; None: μ = 0

    @cached_property
    def factor(self) -> Tensor:
        """The Cholesky factor [inputs, inputs]; only with a moment. Raises Unsolvable."""
        assert self.moment is not None
        return _factored(_shifted(self.moment, self.ridge))

    def divided(self, columns: Tensor) -> Tensor:
        """Return (λI + μC₀)⁻¹X of columns [inputs, n] float64."""
        if self.moment is None:
            return columns / self.ridge
        return torch.cholesky_solve(columns, self.factor)

    def added_to(self, gram: Tensor) -> Tensor:
        """Return a matrix [inputs, inputs] plus λI + μC₀."""
        return _shifted(gram if self.moment is None else gram + self.moment, self.ridge)


def left_factor(inputs: Tensor, prior: Prior, past: Tensor | None = None) -> Tensor:
    """Return A [inputs, n] float64 for inputs H [n, inputs]; `past` is M [m, inputs].

    Solves a system of n + m rows (Woodbury), or of the inputs' size if that is smaller. Raises
    Unsolvable for numbers that are not finite.
    """
    rows = inputs.double() if past is None else torch.cat([inputs, past]).double()
    statistics = rows[:0] if prior.moment is None else prior.moment
    if not bool(rows.isfinite().all() and statistics.isfinite().all()):
        raise Unsolvable(
            "Rows or statistics hold NaN or infinity: the model's numbers overflow there, edit "
            "other blocks."
        )
    solve = dual if len(rows) < rows.shape[1] else primal
    return solve(rows, len(inputs), prior)


def dual(rows: Tensor, count: int, prior: Prior) -> Tensor:
    """Return A for the first `count` of all rows X [n + m, inputs] float64: B⁻¹Xᵀ(I + XB⁻¹Xᵀ)⁻¹,
    its first columns, with B = λI + μC₀."""
    divided = prior.divided(rows.T)
    system = _shifted(rows @ divided, 1.0)
    units = torch.eye(len(rows), count, dtype=rows.dtype, device=rows.device)
    return divided @ torch.cholesky_solve(units, _factored((system + system.T) / 2))


def primal(rows: Tensor, count: int, prior: Prior) -> Tensor:
    """Return A for the first `count` of all rows X [n + m, inputs] float64: (B + XᵀX)⁻¹Hᵀ."""
    return torch.cholesky_solve(rows[:count].T, _factored(prior.added_to(rows.T @ rows)))


def _shifted(matrix: Tensor, amount: float) -> Tensor:
    """Return a matrix with an amount added to its diagonal."""
    shifted = matrix.clone()
    shifted.diagonal().add_(amount)
    return shifted


def _factored(system: Tensor) -> Tensor:
    """Return the Cholesky factor of a system. Raises Unsolvable if it is not positive definite."""
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(system)
    if info.item():
        raise Unsolvable(
            "The system of an update is not positive definite: raise ridge, or edit in smaller "
            "batches."
        )
    return factor
