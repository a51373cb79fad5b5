"""The AlphaEdit editor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from continual.editors.alphaedit.config import MOMENT_SHARE, AlphaEditConfig
from continual.locate_then_edit.editor import LocateThenEditEditor, Update
from continual.locate_then_edit.keys import Keys
from continual.locate_then_edit.solves import (
    MomentWhitening,
    NullSpace,
    Solution,
    Unsolvable,
    projected,
    weighted,
)


@dataclass(frozen=True)
class Known:
    """C₀ in the shapes that the forms of the update need; None for a form that is not used."""

    space: NullSpace | None
    whitening: MomentWhitening | None


class AlphaEdit(LocateThenEditEditor[AlphaEditConfig, Known]):
    """Δ = R·KᵀP(KKᵀP + C_p·P + ridge·I)⁻¹ (equation 14), C_p from the keys of all earlier edits.

    If C₀ leaves no null space: Δ = R·Kᵀ(λC₀ + KKᵀ + C_p)⁻¹, see `AlphaEditConfig.form`. The patches
    hold the keys of earlier edits, so a rollback of the history rolls C_p back too.
    """

    name = "alphaedit"

    def __init__(self, config: AlphaEditConfig | None = None) -> None:
        super().__init__(config or AlphaEditConfig())

    def prepare(self, moment: Tensor, device: torch.device) -> Known:
        """Return the null space of C₀, C₀ factored, or both. Raises Unsolvable."""
        form = self.config.form
        whitening = None if form == "projected" else MomentWhitening.of(moment, device)
        return Known(None if form == "weighted" else self._space(moment, device), whitening)

    def minded(self, keys: Keys) -> Tensor:
        """Return all keys of the batch [n, d_ff]."""
        return keys.mean

    def solve(self, update: Update[AlphaEditConfig, Known]) -> tuple[Solution, Tensor]:
        """Solve for the update of a batch, projected or weighted."""
        config, keys, past = update.config, update.keys.mean, update.weight.keys
        space, whitening = update.moments.space, update.moments.whitening
        if space is not None and (
            whitening is None or space.share_of(keys) >= config.nullspace_least
        ):
            return projected(space, keys, past, config.ridge), update.residual
        assert whitening is not None, "one of the forms is prepared"
        weight = config.moment_weight or MOMENT_SHARE * keys.shape[1]
        return weighted(whitening, keys, weight, past), update.residual

    def _space(self, moment: Tensor, device: torch.device) -> NullSpace | None:
        """Return the null space, if there is one. Raises Unsolvable if the form "projected" needs
        one."""
        config = self.config
        try:
            return NullSpace.of(moment, config.nullspace_threshold, config.nullspace_share, device)
        except Unsolvable:
            if config.form == "projected":
                raise
            return None
