"""The AlphaEdit editor."""

from __future__ import annotations

import torch
from torch import Tensor

from continual.associative.editor import AssociativeEditor, Update
from continual.associative.keys import Keys
from continual.associative.solves import (
    NullSpace,
    Solution,
    Unsolvable,
    Whitening,
    projected,
    weighted,
)
from continual.editors.alphaedit.config import MOMENT_SHARE, AlphaEditConfig


class AlphaEdit(AssociativeEditor[AlphaEditConfig, NullSpace | Whitening]):
    """Δ = R·KᵀP(KKᵀP + C_p·P + ridge·I)⁻¹ (equation 14), C_p from the keys of all earlier edits.

    Where C₀ leaves no null space: Δ = R·Kᵀ(λC₀ + KKᵀ + C_p)⁻¹, see `AlphaEditConfig.form`. The keys
    of earlier edits are in the patches: C_p goes back with the history.
    """

    name = "alphaedit"

    def __init__(self, config: AlphaEditConfig | None = None) -> None:
        super().__init__(config or AlphaEditConfig())

    def prepare(self, moment: Tensor, device: torch.device) -> NullSpace | Whitening:
        """The null space of C₀, or C₀ factored where it has none."""
        config = self.config
        if config.form == "weighted":
            return Whitening.of(moment, device)
        try:
            space = NullSpace.of(moment, config.nullspace_threshold, config.nullspace_share, device)
        except Unsolvable:
            if config.form == "projected":
                raise
            return Whitening.of(moment, device)
        has_room = space.directions_share >= config.nullspace_least
        return space if has_room or config.form == "projected" else Whitening.of(moment, device)

    def minded(self, keys: Keys) -> Tensor:
        """All keys of the batch."""
        return keys.mean

    def solve(
        self, update: Update[AlphaEditConfig, NullSpace | Whitening]
    ) -> tuple[Solution, Tensor]:
        """The update of a batch."""
        config, keys, past = update.config, update.keys.mean, update.weight.keys
        if isinstance(update.moments, NullSpace):
            return projected(update.moments, keys, past, config.ridge), update.residual
        weight = config.moment_weight or MOMENT_SHARE * keys.shape[1]
        return weighted(update.moments, keys, weight, past), update.residual
