"""The matrices that an editor by gradients edits: those of the FFNs of some blocks.

Knows their paths, modules and sums. Leaves finding FFNs to ``anatomy``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from continual.effects.parameters import ParameterEdits
from continual.errors import EditError
from continual.gradients.config import GradientConfig
from continual.model import EditedModel


@dataclass(frozen=True)
class EditableMatrix:
    """One matrix of a linear layer, as [inputs, outputs]."""

    path: str  # of the parameter
    module: nn.Module
    block: int
    weight: ParameterEdits

    @property
    def shape(self) -> tuple[int, int]:
        """[inputs, outputs]; matrices of one shape share a normaliser."""
        inputs, outputs = self.weight.shape
        return inputs, outputs

    @property
    def past_rows(self) -> Tensor:
        """The rows [m, inputs + outputs] float32 of all patches by gradients on the model. Rows of
        zeros, which belong to no token, are left out."""
        rows = self.weight.gradient_rows
        return rows[rows.any(1)]

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
        _matrix(edited, path, block)
        for block in blocks
        for path in _paths(edited, block, config.sides)
    )


def named_matrices(
    edited: EditedModel, shapes: Mapping[str, tuple[int, int]]
) -> tuple[EditableMatrix, ...]:
    """Return FFN matrices by their paths, in the order of the paths. Raises EditError for a path
    that is no FFN matrix of the model, or one of another shape."""
    edited.anatomy.require_ffn()
    blocks = {
        path: block
        for block in range(edited.anatomy.block_count)
        for path in _paths(edited, block, "both")
    }
    if unknown := [path for path in shapes if path not in blocks]:
        raise EditError(f"The model has no FFN matrix {unknown[0]}: train a network for it.")
    matrices = tuple(_matrix(edited, path, blocks[path]) for path in shapes)
    for matrix in matrices:
        if matrix.shape != shapes[matrix.path]:
            raise EditError(
                f"{matrix.path} is {matrix.shape}, and the network was trained on "
                f"{shapes[matrix.path]}: train a network for this model."
            )
    return matrices


def _matrix(edited: EditedModel, path: str, block: int) -> EditableMatrix:
    module = edited.model.get_submodule(path.removesuffix(".weight"))
    return EditableMatrix(path, module, block, edited.matrix(path))


def _paths(edited: EditedModel, block: int, sides: str) -> list[str]:
    anatomy = edited.anatomy
    up = [f"{anatomy.path(block, inside)}.weight" for inside in anatomy.up]
    down = [anatomy.down_path(block)]
    return {"up": up, "down": down, "both": up + down}[sides]
