"""The EMMET editor."""

from __future__ import annotations

import torch
from torch import Tensor

from continual.editors.emmet.config import EmmetConfig
from continual.locate_then_edit.editor import LocateThenEditEditor, Update
from continual.locate_then_edit.solves import MomentWhitening, Solution, weighted


class Emmet(LocateThenEditEditor[EmmetConfig, MomentWhitening]):
    """The update that writes every value and otherwise changes least."""

    name = "emmet"

    def __init__(self, config: EmmetConfig | None = None) -> None:
        super().__init__(config or EmmetConfig())

    def prepare(self, moment: Tensor, device: torch.device) -> MomentWhitening:
        """Return C₀ factored. Raises Unsolvable."""
        return MomentWhitening.of(moment, device)

    def solve(self, update: Update[EmmetConfig, MomentWhitening]) -> tuple[Solution, Tensor]:
        """Solve for Δ = R(KᵀC₀⁻¹K + ridge·I)⁻¹KᵀC₀⁻¹, in the paper's orientation."""
        solution = weighted(update.moments, update.keys.mean, update.config.ridge)
        return solution, update.residual
