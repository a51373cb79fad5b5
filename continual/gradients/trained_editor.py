"""The common part of editors by gradients that are trained: the network and its matrices.

The matrices are those that the network was trained on. A network gives shifts, or the factors of
an update for each edit: these are added as they are, or solved for. Leaves them to each method.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from continual.errors import EditError
from continual.gradients.config import FactoredConfig, TrainedConfig
from continual.gradients.editor import EditRows, GradientBatch, GradientEditor, Updates
from continual.gradients.matrices import EditableMatrix, named_matrices
from continual.gradients.networks import EditorNetwork
from continual.gradients.side_paths import SidePath
from continual.gradients.trained import NetworkFile
from continual.proposals import EditContext

EditorConfig = TypeVar("EditorConfig", bound=TrainedConfig)
FactoredSettings = TypeVar("FactoredSettings", bound=FactoredConfig)
Network = TypeVar("Network", bound=EditorNetwork)


class TrainedEditor(GradientEditor[EditorConfig], Generic[EditorConfig, Network]):
    """A method whose updates come from a trained network."""

    network_type: ClassVar[type[Any]]
    reads_whole_texts = True

    def __init__(self, config: EditorConfig) -> None:
        super().__init__(config)
        self._network: tuple[str, Network] | None = None  # with the base's fingerprint

    def network(self, context: EditContext) -> Network:
        """Return the network that the settings name, read once in a run. Raises EditError if they
        name none, NetworkError for another file."""
        config, base = self.config, context.site.edited.base.fingerprint
        if not config.network or not config.network_digest:
            raise EditError(
                f"{self.name} needs a trained network: run `cedit train {self.name} REQUESTS --out "
                f"FILE`, and put the lines that it prints under [{config.table}]."
            )
        if self._network is None or self._network[0] != base:
            file = NetworkFile(Path(config.network), config.network_digest)
            self._network = base, file.read(self.network_type, base)
        return self._network[1]

    def matrices(self, context: EditContext) -> tuple[EditableMatrix, ...]:
        """See `GradientEditor.matrices`: those of the network."""
        return named_matrices(context.site.edited, self.network(context).form.shapes)


class FactoredEditor(TrainedEditor[FactoredSettings, Network]):
    """A method whose network gives the factors of each edit's update."""

    @abstractmethod
    def factors(self, path: str, part: EditRows, context: EditContext) -> SidePath:
        """Return the factors of an edit's update of a matrix."""

    def updates(self, batch: GradientBatch, context: EditContext) -> Updates:
        """See `GradientEditor.updates`: the network's factors, unless they are solved for. A column
        that belongs to no token has a row of zeros, which counts nowhere."""
        if self.config.solved:
            return super().updates(batch, context)
        factors = self._factors(batch, context)
        left = {p: torch.cat([f.left for f in of_path], 1) for p, of_path in factors.items()}
        right = {p: torch.cat([f.right for f in of_path]) for p, of_path in factors.items()}
        columns = [f.left.shape[1] for f in next(iter(factors.values()))]
        parts = [_filled_up(part, n) for part, n in zip(batch.edits, columns, strict=True)]
        return Updates(GradientBatch(tuple(parts), batch.matrices), left, right)

    def shifts(self, batch: GradientBatch, context: EditContext) -> Mapping[str, Tensor]:
        """Return the outputs H·A·R that an edit's own update would add at its own rows."""
        factors = self._factors(batch, context)
        return {
            matrix.path: torch.cat(
                [
                    part.rows[matrix.path][:, : matrix.shape[0]].double() @ f.left @ f.right
                    for part, f in zip(batch.edits, factors[matrix.path], strict=True)
                ]
            )
            for matrix in batch.matrices
        }

    @torch.no_grad()
    def _factors(self, batch: GradientBatch, context: EditContext) -> dict[str, list[SidePath]]:
        """Return the factors [float64] of each edit, by path; they do not depend on the others."""
        factors = {
            matrix.path: [self.factors(matrix.path, part, context) for part in batch.edits]
            for matrix in batch.matrices
        }
        return {
            path: [SidePath(f.left.double(), f.right.double()) for f in of_path]
            for path, of_path in factors.items()
        }


def _filled_up(part: EditRows, count: int) -> EditRows:
    """Return an edit with rows of zeros behind its own, up to a number of rows."""
    rows = {
        path: torch.cat([of_path, of_path.new_zeros(count - len(of_path), of_path.shape[1])])
        for path, of_path in part.rows.items()
    }
    return replace(part, rows=rows)
