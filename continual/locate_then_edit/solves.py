"""The linear algebra of locate-then-edit, in float64: from keys to the left factor of Δ.

With a request a row, keys K [n, d_ff] and residuals R [n, d], every method writes
ΔW = A·R [d_ff, d]; this module solves for A [d_ff, n]. It knows nothing of models. In the papers a
request is a column and Δ is the transpose.

    A = C₀⁻¹Kᵀ (λI + K C₀⁻¹ Kᵀ)⁻¹ = (λC₀ + KᵀK)⁻¹ Kᵀ

is MEMIT's (Meng et al. 2023, equation 14), ROME's for one key and λ → 0 (Meng et al. 2022,
equation 2), and EMMET's with a small λ for its ridge (Gupta et al. 2024): one way to compute it
serves all three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.errors import EditError

RIDGE = 1e-9
"""The ridge on the diagonal of a singular C₀, as a share of the diagonal's mean."""
SINGULAR = 1e-13
"""A pivot of C₀ below this share of the diagonal's mean is mere rounding."""


class Unsolvable(EditError):
    """A batch whose update cannot be computed."""


@dataclass(frozen=True)
class Solution:
    """A left factor, with the condition and the residual of its system."""

    left: Tensor  # A [d_ff, n] float64
    condition: float  # of the system, estimated from its pivots: a lower bound
    residual: float  # ‖S·A − K‖ / ‖K‖, S the d_ff × d_ff system


@dataclass(frozen=True)
class MomentWhitening:
    """C₀ = L·Lᵀ, factored once.

    ReLU units that no text of the statistics woke make C₀ singular; it then gets a `ridge` on its
    diagonal, which leaves these units free for edits.
    """

    factor: Tensor  # L [d_ff, d_ff] float64, lower
    ridge: float

    @classmethod
    def of(cls, moment: Tensor, device: torch.device) -> MomentWhitening:
        """Factor a second moment C₀ [d_ff, d_ff]. Raises Unsolvable if it is not one."""
        _require_finite("The key statistics", moment)
        dense = moment.to(_float64_device(device), torch.float64)
        scale = float(dense.diagonal().mean())
        for ridge in (0.0, *[RIDGE * scale * 100.0**power for power in range(4)]):
            shifted = dense.clone()
            shifted.diagonal().add_(ridge)
            factor, info = torch.linalg.cholesky_ex(shifted)
            if not info.item() and float(factor.diagonal().min()) ** 2 > SINGULAR * scale:
                return cls(factor, ridge)
        raise Unsolvable("The key statistics are no second moment: C₀ is not positive definite.")

    def whitened(self, keys: Tensor) -> Tensor:
        """Return L⁻¹Kᵀ [d_ff, n] of keys [n, d_ff]."""
        columns: Tensor = torch.linalg.solve_triangular(self.factor, keys.T, upper=False)
        return columns

    def unwhitened(self, columns: Tensor) -> Tensor:
        """Return L⁻ᵀX of columns [d_ff, n]."""
        solution: Tensor = torch.linalg.solve_triangular(self.factor.T, columns, upper=True)
        return solution

    def times(self, columns: Tensor) -> Tensor:
        """Return C₀X of columns [d_ff, n]."""
        return self.factor @ (self.factor.T @ columns)


def weighted(
    whitening: MomentWhitening, keys: Tensor, weight: float, past: Tensor | None = None
) -> Solution:
    """Solve for A = (λC₀ + C_p + KᵀK)⁻¹Kᵀ of keys [n, d_ff], λ = `weight`; see above for λ = 0.

    C_p = pastᵀ·past of the keys [m, d_ff] of earlier edits, which then count like the batch's own;
    the papers with λC₀ have no C_p. Uses Woodbury's identity, O(d_ff²·(n + m)), or solves directly
    if n + m reaches d_ff. Raises Unsolvable for keys that are not finite, and, with λ = 0, for keys
    that are not independent.
    """
    keys = _prepared(keys, whitening.factor)
    all_keys = keys if past is None else torch.cat([keys, _prepared(past, whitening.factor)])
    if len(all_keys) < all_keys.shape[1]:
        white = whitening.whitened(all_keys)
        system = white.T @ white
        system.diagonal().add_(weight)
        factor = _factored(system)
        units = torch.eye(len(all_keys), len(keys), dtype=keys.dtype, device=keys.device)
        left = whitening.unwhitened(white @ torch.cholesky_solve(units, factor))
    else:
        identity = torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
        factor = _factored(weight * whitening.times(identity) + all_keys.T @ all_keys)
        left = torch.cholesky_solve(keys.T, factor)
    return _solution(
        left,
        keys,
        factor,
        lambda found: weight * whitening.times(found) + all_keys.T @ (all_keys @ found),
    )


def rank_one(whitening: MomentWhitening, key: Tensor, constrained: Tensor) -> Solution:
    """Return A = u / (kᵀu) with u = C₀⁻¹k̄ (Meng et al. 2022, equation 2).

    `key` k̄ [1, d_ff] gives the direction; `constrained` k [1, d_ff] is the key that must give the
    new value exactly. As published, k̄ is the mean over contexts and k the bare prompt's own key.
    Raises Unsolvable if k is orthogonal to u.
    """
    key, constrained = _prepared(key, whitening.factor), _prepared(constrained, whitening.factor)
    direction = whitening.unwhitened(whitening.whitened(key))  # u [d_ff, 1]
    reach = constrained @ direction
    if not float(reach.abs()) > 0.0:
        raise Unsolvable("A key is orthogonal to the direction of its own update.")
    left = direction / reach
    norms = torch.linalg.vector_norm(constrained) * torch.linalg.vector_norm(left)
    error = torch.linalg.vector_norm(constrained @ left - 1.0)
    _require_finite("An update", left)
    return Solution(left, float(norms), float(error))


# --- the null space -------------------------------------------------------------------------------


@dataclass(frozen=True)
class NullSpace:
    """The directions that keys of the statistics hardly have: P = U·Uᵀ (Fang et al. 2025, eq. 5).

    Kept as its basis, so that the system of an update is symmetric, and no larger than the basis.
    """

    basis: Tensor  # U [d_ff, m] float64, orthonormal

    def share_of(self, keys: Tensor) -> float:
        """Return the share of the squared length of keys [n, d_ff] that lies in the space."""
        keys = keys.to(self.basis)
        return float((keys @ self.basis).square().sum() / keys.square().sum())

    @classmethod
    def of(
        cls, moment: Tensor, threshold: float | None, share: float, device: torch.device
    ) -> NullSpace:
        """Take the eigenvectors of C₀ with eigenvalues below `threshold`.

        Without a threshold, or with no eigenvalue below it, take as many of the smallest as
        together hold no more than `share` of the trace. Raises Unsolvable if there are none.
        """
        _require_finite("The key statistics", moment)
        dense = moment.to(_float64_device(device), torch.float64)
        values, vectors = torch.linalg.eigh(dense)  # in ascending order
        values = values.clamp(min=0.0)
        count = 0 if threshold is None else int((values < threshold).sum())
        if count == 0:
            count = int((values.cumsum(0) <= share * values.sum()).sum())
        if count == 0:
            raise Unsolvable(
                f"The keys leave no null space: no eigenvalue of C₀ is below {threshold}, and no "
                f"direction holds less than {share:g} of its trace. Raise one of them."
            )
        return cls(vectors[:, :count].contiguous())


def projected(space: NullSpace, keys: Tensor, past: Tensor, ridge: float) -> Solution:
    """Solve for A = (P(KᵀK + C_p) + ridge·I)⁻¹ P Kᵀ (Fang et al. 2025, equation 14).

    `keys` K [n, d_ff], `past` [m, d_ff] the keys of all earlier edits, C_p = pastᵀ·past. A lies in
    the null space: A = U·y with (Uᵀ(KᵀK + C_p)U + ridge·I)·y = UᵀKᵀ.
    """
    keys, past = _prepared(keys, space.basis), _prepared(past, space.basis)
    rows, all_rows = keys @ space.basis, torch.cat([keys, past]) @ space.basis  # [., m]
    if len(all_rows) < all_rows.shape[1]:
        system = all_rows @ all_rows.T
        system.diagonal().add_(ridge)
        factor = _factored(system)
        units = torch.eye(len(all_rows), len(rows), dtype=rows.dtype, device=rows.device)
        coefficients = all_rows.T @ torch.cholesky_solve(units, factor)
    else:
        system = all_rows.T @ all_rows
        system.diagonal().add_(ridge)
        factor = _factored(system)
        coefficients = torch.cholesky_solve(rows.T, factor)
    solution = _solution(
        coefficients, rows, factor, lambda found: all_rows.T @ (all_rows @ found) + ridge * found
    )
    return Solution(space.basis @ coefficients, solution.condition, solution.residual)


# --- checks ---------------------------------------------------------------------------------------


def _prepared(keys: Tensor, like: Tensor) -> Tensor:
    _require_finite("Keys", keys)
    return keys.to(like)


def _factored(system: Tensor) -> Tensor:
    """Return the Cholesky factor of a system. Raises Unsolvable if it is not positive definite."""
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(system)
    if info.item():
        raise Unsolvable(
            "The keys of a batch depend on each other, so that no update satisfies all of them: "
            "edit them in smaller batches, or give the method more weight on the statistics."
        )
    return factor


def _solution(
    left: Tensor, keys: Tensor, factor: Tensor, system: Callable[[Tensor], Tensor]
) -> Solution:
    _require_finite("An update", left)
    pivots = factor.diagonal()
    error = torch.linalg.matrix_norm(system(left) - keys.T) / torch.linalg.matrix_norm(keys)
    return Solution(left, float((pivots.max() / pivots.min()) ** 2), float(error))


def _require_finite(name: str, tensor: Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        raise Unsolvable(f"{name} hold NaN or infinity: the model's numbers overflow there.")


def _float64_device(device: torch.device) -> torch.device:
    """Return the device if it has float64, else the CPU."""
    return torch.device("cpu") if device.type == "mps" else device
