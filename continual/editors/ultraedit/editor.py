"""The UltraEdit editor.

    v = −η·‖ĥ‖²·ĝ

with a row's input ĥ and gradient ĝ normalised over all rows that were ever seen at matrices of the
shape, the batch's own among them. Not in the paper, and on unless the settings say otherwise: the
normaliser begins with rows of the base, the size of an update is searched for (`scale_max`), and
the system holds inputs of earlier edits (`memory`) and of the base (`moment_weight`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from continual.editors.ultraedit.config import RATE_BY_WIDTH, UltraEditConfig
from continual.gradients.editor import GradientBatch, GradientEditor
from continual.gradients.matrices import EditableMatrix, chosen_matrices
from continual.gradients.normaliser import Normaliser
from continual.gradients.ridge import Unsolvable
from continual.gradients.rows import read_rows
from continual.gradients.warmup import misanswered
from continual.proposals import EditContext

ROWS_MIN = 2
"""Rows that a normaliser needs: of one row it makes nothing but zeros."""


class UltraEdit(GradientEditor[UltraEditConfig]):
    """Normalised gradients as wanted shifts."""

    name = "ultraedit"

    def __init__(self, config: UltraEditConfig | None = None) -> None:
        super().__init__(config or UltraEditConfig())
        self._warm: tuple[tuple[str, int, int], dict[str, Tensor]] | None = None

    def matrices(self, context: EditContext) -> tuple[EditableMatrix, ...]:
        """See `GradientEditor.matrices`: those of the settings."""
        return chosen_matrices(context.site.edited, self.config)

    def shifts(self, batch: GradientBatch, context: EditContext) -> Mapping[str, Tensor]:
        """Return −η·‖ĥ‖²·ĝ for each matrix. Raises Unsolvable if there are too few rows."""
        warm = self._warm_rows(batch.matrices, context)
        shapes = {matrix.shape for matrix in batch.matrices}
        normalisers = {shape: _normaliser(shape, batch, warm) for shape in shapes}
        for normaliser in normalisers.values():
            if normaliser.count < ROWS_MIN:
                raise Unsolvable(
                    "its normaliser has seen one row alone: give the store training probes, or "
                    "apply the first corrections in a batch (--batch-size 10)"
                )
        return {m.path: self._shift(m, batch.rows(m), normalisers[m.shape]) for m in batch.matrices}

    def _shift(self, matrix: EditableMatrix, rows: Tensor, normaliser: Normaliser) -> Tensor:
        """Return the shifts [n, outputs] float64 of one matrix's output."""
        inputs = matrix.shape[0]
        normalised = normaliser.normalised(rows)
        rate = RATE_BY_WIDTH / inputs if self.config.rate is None else self.config.rate
        lengths = normalised[:, :inputs].square().sum(1, keepdim=True)
        return -rate * lengths * normalised[:, inputs:]

    def _warm_rows(
        self, matrices: Sequence[EditableMatrix], context: EditContext
    ) -> dict[str, Tensor]:
        """Return the rows of the bare base that a normaliser begins with, by path; they are read
        once in a run."""
        edited = context.site.edited
        probes = context.known_answers().training if self.config.warmup else ()
        texts = misanswered(probes, self.config.warmup, context.seed)
        if not texts:
            return {m.path: torch.empty(0, sum(m.shape)) for m in matrices}
        key = (edited.base.fingerprint, len(probes), context.seed)
        if self._warm is None or self._warm[0] != key:
            modules = {matrix.path: matrix.module for matrix in matrices}
            with edited.bare():
                self._warm = key, read_rows(context.site, modules, texts)
        return self._warm[1]


def _normaliser(
    shape: tuple[int, int], batch: GradientBatch, warm: Mapping[str, Tensor]
) -> Normaliser:
    """Return the normaliser of a shape: of the base's rows, those of all earlier edits, and the
    batch's."""
    matrices = [matrix for matrix in batch.matrices if matrix.shape == shape]
    return Normaliser.of(
        [
            *[warm[matrix.path] for matrix in matrices],
            *[matrix.past_rows for matrix in matrices],
            *[batch.rows(matrix) for matrix in matrices],
        ]
    )
