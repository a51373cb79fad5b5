"""The ROME editor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from continual.editors.rome.config import RomeConfig
from continual.locate_then_edit.edit_texts import EditTexts
from continual.locate_then_edit.editor import LocateThenEditEditor, Update
from continual.locate_then_edit.solves import MomentWhitening, Solution, rank_one


class Rome(LocateThenEditEditor[RomeConfig, MomentWhitening]):
    """Δ = (v* − Wk)·uᵀ / (kᵀu), u = C₀⁻¹k (equation 2), on the model as the last edit left it."""

    name = "rome"

    def __init__(self, config: RomeConfig | None = None) -> None:
        super().__init__(config or RomeConfig())

    def prepare(self, moment: Tensor, device: torch.device) -> MomentWhitening:
        """Return C₀ factored. Raises Unsolvable."""
        return MomentWhitening.of(moment, device)

    def rounds(self, batch: Sequence[EditTexts]) -> Iterable[Sequence[EditTexts]]:
        """Return each edit in a group of its own."""
        return [[edit_texts] for edit_texts in batch]

    def chosen_blocks(self, blocks: tuple[int, ...]) -> tuple[int, ...]:
        """Return the last block alone."""
        return blocks[-1:]

    def solve(self, update: Update[RomeConfig, MomentWhitening]) -> tuple[Solution, Tensor]:
        """Solve for the update of one request.

        The value v* is the bare prompt's output plus δ. So v* − Wk is δ for the bare prompt's key;
        for the mean key it is δ plus the difference of W's outputs for the two keys.
        """
        mean_key, plain_key = update.keys.mean, update.keys.plain
        if not update.config.averaged:
            return rank_one(update.moments, mean_key, plain_key), update.residual
        difference = (plain_key - mean_key) @ update.weight.sum
        return rank_one(update.moments, mean_key, mean_key), update.residual + difference
