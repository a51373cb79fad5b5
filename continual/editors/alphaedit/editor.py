"""The AlphaEdit editor."""

from __future__ import annotations

import torch
from torch import Tensor

from continual.associative.editor import AssociativeEditor, Update
from continual.associative.keys import Keys
from continual.associative.solves import NullSpace, Solution, projected
from continual.editors.alphaedit.config import AlphaEditConfig


class AlphaEdit(AssociativeEditor[AlphaEditConfig, NullSpace]):
    """Δ = R·KᵀP(KKᵀP + C_p·P + ridge·I)⁻¹ (equation 14), C_p from the keys of all earlier edits.

    These keys are in the patches: C_p goes back with the history.
    """

    name = "alphaedit"

    def __init__(self, config: AlphaEditConfig | None = None) -> None:
        super().__init__(config or AlphaEditConfig())

    def prepare(self, moment: Tensor, device: torch.device) -> NullSpace:
        """The null space of C₀."""
        threshold, share = self.config.nullspace_threshold, self.config.nullspace_share
        return NullSpace.of(moment, threshold, share, device)

    def minded(self, keys: Keys) -> Tensor:
        """All keys of the batch."""
        return keys.mean

    def solve(self, update: Update[AlphaEditConfig, NullSpace]) -> tuple[Solution, Tensor]:
        """The update of a batch."""
        keys, past = update.keys.mean, update.weight.keys
        solution = projected(update.moments, keys, past, update.config.ridge)
        return solution, update.residual
