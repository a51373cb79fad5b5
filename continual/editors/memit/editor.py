"""The MEMIT editor."""

from __future__ import annotations

import torch
from torch import Tensor

from continual.editors.memit.config import MOMENT_SHARE, MemitConfig
from continual.locate_then_edit.editor import LocateThenEditEditor, Update
from continual.locate_then_edit.keys import Keys
from continual.locate_then_edit.solves import MomentWhitening, Solution, weighted


class Memit(LocateThenEditEditor[MemitConfig, MomentWhitening]):
    """A least-squares update for the whole batch, weighed against all other keys (equation 14)."""

    name = "memit"

    def __init__(self, config: MemitConfig | None = None) -> None:
        super().__init__(config or MemitConfig())

    def prepare(self, moment: Tensor, device: torch.device) -> MomentWhitening:
        """Return C₀ factored. Raises Unsolvable."""
        return MomentWhitening.of(moment, device)

    def minded(self, keys: Keys) -> Tensor | None:
        """Return all keys of the batch [n, d_ff] if later batches are to mind them."""
        return keys.mean if self.config.past else None

    def solve(self, update: Update[MemitConfig, MomentWhitening]) -> tuple[Solution, Tensor]:
        """Solve for Δ = R·Kᵀ(λC₀ + C_p + K·Kᵀ)⁻¹, in the paper's orientation; the paper has no
        C_p."""
        keys, weight = update.keys.mean, update.config.moment_weight
        past = update.weight.keys if update.config.past else None
        solution = weighted(update.moments, keys, weight or MOMENT_SHARE * keys.shape[1], past)
        return solution, update.residual
