"""MALMEN's network: rows of a batch of edits become wanted shifts, and these one update.

    d = −η·(k·k̃)·g̃,   [k̃; g̃] = g([k; g]),   ΔW = (KᵀK + λI)⁻¹KᵀD

(Tan et al., ICLR 2024). η and λ are learned for each matrix. The system is solved in its dual form,
of as many rows as the batch has, in float64, and differentiated as it is: ∂L/∂D comes to K·M with
M = (KᵀK + λI)⁻¹Γ, the paper's way without an unrolled solve, and ∂L/∂log λ to −λ·⟨M, ΔW⟩.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from continual.gradients.networks import NetworkForm, NetworkInput, NormalisedNetwork, ResidualStack
from continual.gradients.side_paths import SidePath

RATE_BY_WIDTH = 4e-3
"""η at the start, times the width of the inputs: of the published 1e-6 at a width of 4,096."""
BLOCKS = 2


class MalmenNetwork(NormalisedNetwork):
    """Two residual blocks for each shape, and a step size and a ridge for each matrix."""

    method = "malmen"

    def __init__(self, form: NetworkForm) -> None:
        super().__init__(form)
        self.blocks = ResidualStack(form, BLOCKS, scales_inside=False)
        rates = [math.log(RATE_BY_WIDTH / inputs) for inputs, _ in form.shapes.values()]
        self.log_rates = nn.Parameter(torch.tensor(rates))
        self.log_ridges = nn.Parameter(torch.zeros(len(form.shapes)))

    def shifts(self, path: str, rows: Tensor) -> Tensor:
        """Return the wanted shifts D [n, outputs] of rows [n, inputs + outputs] at a matrix."""
        inputs = self.form.shapes[path][0]
        transformed = self.blocks(path, self.normalised(path, rows))
        overlaps = (rows[:, :inputs] * transformed[:, :inputs]).sum(1, keepdim=True)
        rate = self.log_rates[list(self.form.shapes).index(path)].exp()
        shifts: Tensor = -rate * overlaps * transformed[:, inputs:]
        return shifts

    def ridge(self, path: str) -> Tensor:
        """Return λ of a matrix."""
        return self.log_ridges[list(self.form.shapes).index(path)].exp()

    def side_paths(self, edits: Sequence[NetworkInput]) -> dict[str, SidePath]:
        """See `EditorNetwork.side_paths`: one update for all edits."""
        paths: dict[str, SidePath] = {}
        for path, (inputs, _) in self.form.shapes.items():
            rows = torch.cat([edit.rows[path] for edit in edits])
            keys = rows[:, :inputs].double()
            system = keys @ keys.T + self.ridge(path).double() * torch.eye(len(keys))
            left = torch.linalg.solve(system, keys).T
            paths[path] = SidePath(left.float(), self.shifts(path, rows))
        return paths

    def loss(self, inside: Tensor, divergence: Tensor) -> Tensor:
        """See `EditorNetwork.loss`: both weigh 1, as published."""
        return inside + divergence
