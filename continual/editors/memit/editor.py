"""The MEMIT editor."""

from __future__ import annotations

import torch
from torch import Tensor

from continual.associative.editor import AssociativeEditor, Update
from continual.associative.solves import Solution, Whitening, weighted
from continual.editors.memit.config import MOMENT_SHARE, MemitConfig


class Memit(AssociativeEditor[MemitConfig, Whitening]):
    """A least-squares update for the whole batch, weighed against all other keys (equation 14)."""

    name = "memit"

    def __init__(self, config: MemitConfig | None = None) -> None:
        super().__init__(config or MemitConfig())

    def prepare(self, moment: Tensor, device: torch.device) -> Whitening:
        """Return C₀ factored. Raises Unsolvable."""
        return Whitening.of(moment, device)

    def solve(self, update: Update[MemitConfig, Whitening]) -> tuple[Solution, Tensor]:
        """Solve for Δ = R·Kᵀ(λC₀ + K·Kᵀ)⁻¹, in the paper's orientation."""
        keys, weight = update.keys.mean, update.config.moment_weight
        solution = weighted(update.moments, keys, weight or MOMENT_SHARE * keys.shape[1])
        return solution, update.residual
