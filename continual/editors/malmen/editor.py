"""The MALMEN editor: a trained network's shifts, solved for a batch, with a memory if wanted."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from continual.editors.malmen.config import MalmenConfig
from continual.editors.malmen.network import MalmenNetwork
from continual.gradients.editor import GradientBatch
from continual.gradients.trained_editor import TrainedEditor
from continual.proposals import EditContext


class Malmen(TrainedEditor[MalmenConfig, MalmenNetwork]):
    """Trained shifts of a batch, solved for as one."""

    name = "malmen"
    network_type = MalmenNetwork
    reads_whole_texts = False

    def __init__(self, config: MalmenConfig | None = None) -> None:
        super().__init__(config or MalmenConfig())

    @torch.no_grad()
    def shifts(self, batch: GradientBatch, context: EditContext) -> Mapping[str, Tensor]:
        """Return the network's shifts, edit by edit."""
        network = self.network(context)
        return {
            matrix.path: torch.cat(
                [network.shifts(matrix.path, part.rows[matrix.path]) for part in batch.edits]
            ).double()
            for matrix in batch.matrices
        }

    def ridge(self, path: str, context: EditContext) -> float:
        """See `GradientEditor.ridge`: as trained, unless the settings say otherwise."""
        if not self.config.trained_ridge:
            return self.config.ridge
        return float(self.network(context).ridge(path))
