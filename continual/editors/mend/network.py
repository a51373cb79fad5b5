"""MEND's network: rows of an edit, normalised and transformed, become the factors of its update.

    ΔW = −α·Σ_tokens ũᵀδ̃,   [ũ; δ̃] = g([u; δ])

with g two low-rank residual blocks that matrices of one shape share (Mitchell et al. 2022, section
3). Published with plus and a free α: there training has to turn the sign first. Here it is minus,
and α = exp(·) > 0, so that the untrained network goes down the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from continual.gradients.networks import (
    NetworkForm,
    NetworkInput,
    NormalisedNetwork,
    ResidualStack,
    padded,
)
from continual.gradients.side_paths import SidePath

RATE = 1e-4  # α at the start, as published
EDIT_WEIGHT = 1.0
"""c_edit; KL weighs 1. Published .1, for a million steps: a short training has to find α first."""
BLOCKS = 2


class MendNetwork(NormalisedNetwork):
    """Two residual blocks for each shape, and a step size for each matrix."""

    method = "mend"

    def __init__(self, form: NetworkForm) -> None:
        super().__init__(form)
        self.blocks = ResidualStack(form, BLOCKS, scales_inside=True)
        self.log_rates = nn.Parameter(torch.full((len(form.shapes),), math.log(RATE)))

    def factors(self, path: str, rows: Tensor) -> SidePath:
        """Return ũᵀ [inputs, n] and −α·δ̃ [n, outputs] of an edit's rows at a matrix. Rows without a
        gradient have zeros."""
        inputs = self.form.shapes[path][0]
        has_gradient = rows[:, inputs:].any(1, keepdim=True)
        transformed = self.blocks(path, self.normalised(path, rows)) * has_gradient
        rate = self.log_rates[list(self.form.shapes).index(path)].exp()
        return SidePath(transformed[:, :inputs].T, -rate * transformed[:, inputs:])

    def side_paths(self, edits: Sequence[NetworkInput]) -> dict[str, SidePath]:
        """See `EditorNetwork.side_paths`: one update for each edit."""
        paths: dict[str, SidePath] = {}
        for path in self.form.shapes:
            parts = [self.factors(path, edit.rows[path]) for edit in edits]
            paths[path] = SidePath(
                padded([part.left for part in parts], 1), padded([part.right for part in parts], 0)
            )
        return paths

    def loss(self, inside: Tensor, divergence: Tensor) -> Tensor:
        """See `EditorNetwork.loss`."""
        return EDIT_WEIGHT * inside + divergence
