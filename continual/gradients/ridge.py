"""The ridge system of an update, in float64: from inputs to the left factor of ΔW.

With inputs H [n, inputs] and wanted shifts V [n, outputs] of a batch, and past inputs M of earlier
edits, ΔW = A·V is the minimiser of

    ‖HΔ − V‖² + ‖MΔ‖² + λ‖Δ‖² + μ·tr(ΔᵀC₀Δ),   A = (λI + μC₀ + MᵀM + HᵀH)⁻¹Hᵀ

so that past inputs ask for no further change. Knows nothing of models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from continual.errors import EditError


class Unsolvable(EditError):
    """A batch whose update cannot be computed."""


def left_factor(
    inputs: Tensor, ridge: float, past: Tensor | None = None, moment: Tensor | None = None
) -> Tensor:
    """Return A [inputs, n] float64 for inputs H [n, inputs]; `past` is M [m, inputs], `moment` μC₀
    [inputs, inputs].

    Solves a system of n + m rows (Woodbury), or of the inputs' size if that is smaller. Raises
    Unsolvable for numbers that are not finite.
    """
    tensors = [t.double() for t in (inputs, past, moment) if t is not None]
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise Unsolvable(
            "Rows or statistics hold NaN or infinity: the model's numbers overflow there, edit "
            "other blocks."
        )
    rows = inputs.double() if past is None else torch.cat([inputs, past]).double()
    solve = dual if len(rows) < rows.shape[1] else primal
    return solve(rows, len(inputs), ridge, None if moment is None else moment.double())


def dual(rows: Tensor, count: int, ridge: float, moment: Tensor | None = None) -> Tensor:
    """Return A for the first `count` of all rows X [n + m, inputs] float64: B⁻¹Xᵀ(I + XB⁻¹Xᵀ)⁻¹,
    its first columns, with B = λI + μC₀."""
    if moment is None:
        prior = rows.T / ridge
    else:
        prior = torch.cholesky_solve(rows.T, _factored(_shifted(moment, ridge)))
    system = _shifted(rows @ prior, 1.0)
    units = torch.eye(len(rows), count, dtype=rows.dtype, device=rows.device)
    return prior @ torch.cholesky_solve(units, _factored((system + system.T) / 2))


def primal(rows: Tensor, count: int, ridge: float, moment: Tensor | None = None) -> Tensor:
    """Return A for the first `count` of all rows X [n + m, inputs] float64: (B + XᵀX)⁻¹Hᵀ."""
    gram = rows.T @ rows
    system = _shifted(gram if moment is None else gram + moment, ridge)
    return torch.cholesky_solve(rows[:count].T, _factored(system))


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
