"""The EMMET editor."""

from __future__ import annotations

import torch
from torch import Tensor

from continual.associative.editor import AssociativeEditor, Update
from continual.associative.solves import Solution, Whitening, weighted
from continual.editors.emmet.config import EmmetConfig


class Emmet(AssociativeEditor[EmmetConfig, Whitening]):
    """The update that writes every value and otherwise changes least."""

    name = "emmet"

    def __init__(self, config: EmmetConfig | None = None) -> None:
        super().__init__(config or EmmetConfig())

    def prepare(self, moment: Tensor, device: torch.device) -> Whitening:
        """Return C₀ factored. Raises Unsolvable."""
        return Whitening.of(moment, device)

    def solve(self, update: Update[EmmetConfig, Whitening]) -> tuple[Solution, Tensor]:
        """Solve for Δ = R(KᵀC₀⁻¹K + ridge·I)⁻¹KᵀC₀⁻¹, in the paper's orientation."""
        solution = weighted(update.moments, update.keys.mean, update.config.ridge)
        return solution, update.residual
