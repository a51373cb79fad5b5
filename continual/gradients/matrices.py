"""The matrices that an editor by gradients edits: those of the FFNs of some blocks.

Knows their paths, modules and sums. Leaves finding FFNs to ``anatomy``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from continual.effects.parameters import EditedWeight
from continual.errors import EditError
from continual.gradients.config import GradientConfig
from continual.model import EditedModel


@dataclass(frozen=True)
class EditableMatrix:
    """One matrix of a linear layer, as [inputs, outputs]."""

    path: str  # of the parameter
    module: nn.Module
    block: int
    weight: EditedWeight

    @property
    def shape(self) -> tuple[int, int]:
        """[inputs, outputs]; matrices of one shape share a normaliser."""
        inputs, outputs = self.weight.sum.shape
        return inputs, outputs

    @property
    def past_rows(self) -> Tensor:
        """The rows [m, inputs + outputs] float32 of all patches by gradients on the model."""
        return self.weight.gradient_rows

    @property
    def past_inputs(self) -> Tensor:
        """The inputs [m, inputs] float32 that earlier edits are keyed by, whatever their editor."""
        inputs = self.shape[0]
        return torch.cat([self.weight.keys.cpu(), self.past_rows[:, :inputs]])


def chosen_matrices(edited: EditedModel, config: GradientConfig) -> tuple[EditableMatrix, ...]:
    """Return the matrices to edit, in the order in which they run.

    Raises EditError for a block that the model does not have; ModelError for a model without FFNs
    that add to the residual sum, or with a matrix that a product of factors cannot edit.
    """
    anatomy = edited.anatomy
    anatomy.require_ffn()
    blocks = config.blocks_of(anatomy.block_count)
    if not 0 <= blocks[0] <= blocks[-1] <= anatomy.last:
        raise EditError(
            f"[{config.table}] blocks = {list(blocks)}: the model has blocks 0 to {anatomy.last}."
        )
    return tuple(
        EditableMatrix(path, edited.model.get_submodule(path.removesuffix(".weight")), block, w)
        for block in blocks
        for path in _paths(edited, block, config.sides)
        for w in [edited.matrix(path)]
    )


def _paths(edited: EditedModel, block: int, sides: str) -> list[str]:
    anatomy = edited.anatomy
    up = [f"{anatomy.path(block, inside)}.weight" for inside in anatomy.up]
    down = [anatomy.down_path(block)]
    return {"up": up, "down": down, "both": up + down}[sides]
