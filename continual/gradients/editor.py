"""The flow of an editor by gradients: rows, wanted shifts, one ridge system for each matrix.

All matrices are edited from the same passes, each by itself. A method leaves the map from rows to
shifts open. The patch has a column and a row for each token of an answer, so that a request leaves
with its own, and all statistics follow from the rows on the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from continual.errors import EditError
from continual.gradients.config import ATTEMPT_GROWTH, NARROWING, SystemConfig
from continual.gradients.matrices import EditableMatrix
from continual.gradients.moments import base_texts, input_moments
from continual.gradients.ridge import Prior, Unsolvable, left_factor
from continual.gradients.rows import read_rows, with_gradient
from continual.gradients.scales import ScaleSearch
from continual.patches import Patch
from continual.patches.gradient import GradientPatch
from continual.patches.low_rank import Factors
from continual.proposals import Edit, EditContext, Proposal
from continual.task_model import TaskModel
from continual.tasks import Encoding

EditorConfig = TypeVar("EditorConfig", bound=SystemConfig)


@dataclass(frozen=True)
class EditRows:
    """An edit's texts, and their rows at each matrix."""

    edit: Edit
    texts: tuple[Encoding, ...]
    rows: Mapping[str, Tensor]  # by path [tokens, inputs + outputs] float32

    @cached_property
    def tokens(self) -> int:
        """The number of its rows."""
        return len(next(iter(self.rows.values())))


@dataclass(frozen=True)
class GradientBatch:
    """The rows of some edits that are solved for together."""

    edits: tuple[EditRows, ...]
    matrices: tuple[EditableMatrix, ...]

    @property
    def owners(self) -> tuple[str, ...]:
        """The request of each row."""
        return tuple(part.edit.id for part in self.edits for _ in range(part.tokens))

    def rows(self, matrix: EditableMatrix) -> Tensor:
        """Return all rows [n, inputs + outputs] at a matrix."""
        return torch.cat([part.rows[matrix.path] for part in self.edits])

    def without(self, failed: Collection[str]) -> GradientBatch:
        """Return the batch without some edits."""
        rest = tuple(part for part in self.edits if part.edit.id not in failed)
        return GradientBatch(rest, self.matrices)


@dataclass(frozen=True)
class Updates:
    """The updates of a batch at their plain size: A and V of each matrix, by path."""

    batch: GradientBatch
    left: Mapping[str, Tensor]  # [inputs, n] float64
    shifts: Mapping[str, Tensor]  # [n, outputs] float64

    def patch(self, scales: Mapping[str, float]) -> GradientPatch:
        """Return the patch with each request's shifts times its scale. Raises Unsolvable if it does
        not fit float32."""
        owners = self.batch.owners
        factor = torch.tensor([scales[owner] for owner in owners], dtype=torch.float64)[:, None]
        factors = {
            matrix.path: _finite(
                Factors(self.left[matrix.path].float(), (factor * self.shifts[matrix.path]).float())
            )
            for matrix in self.batch.matrices
        }
        blocks = {matrix.path: matrix.block for matrix in self.batch.matrices}
        rows = {matrix.path: self.batch.rows(matrix) for matrix in self.batch.matrices}
        return GradientPatch(factors, blocks, owners=owners, gradient_rows=rows)


class GradientEditor(ABC, Generic[EditorConfig]):
    """A method that maps rows to shifts, and solves one ridge system for each matrix."""

    name: str
    attempts = 2
    tolerance = 0.5
    splits = False
    crowds = False
    narrows = True
    reads_whole_texts = False  # rows of all tokens with a gradient, not of the answer's alone

    def __init__(self, config: EditorConfig) -> None:
        self.config = config
        self._known_priors: tuple[tuple[str, tuple[Encoding, ...]], dict[str, Prior]] | None = None
        """With the base and the texts that they were read from."""

    @abstractmethod
    def matrices(self, context: EditContext) -> tuple[EditableMatrix, ...]:
        """Return the matrices to edit. Raises EditError and ModelError if they are not to be
        had."""

    @abstractmethod
    def shifts(self, batch: GradientBatch, context: EditContext) -> Mapping[str, Tensor]:
        """Return the wanted shifts [n, outputs] float64 of each matrix's output, by path. Raises
        Unsolvable if there can be none."""

    def edit(self, edits: Sequence[Edit], context: EditContext) -> Proposal:
        """See `Editor.edit`. A retry has updates of four times the size, or a search that goes four
        times as far; one after too much change smaller updates and half of the margin.

        Raises EditError and ModelError for a model that is not of its kind.
        """
        self._require_positions(context.site)
        matrices = self.matrices(context)
        draft = _Draft()
        batch = GradientBatch(tuple(draft.finite(self._read(edits, matrices, context))), matrices)
        try:
            patch = self._patch(batch, context, draft) if batch.edits else None
        except Unsolvable as error:
            draft.refuse({part.edit.id: str(error) for part in batch.edits})
            return Proposal(None, draft.failed)
        return Proposal(patch, draft.failed, draft.notes)

    def objection(self, patch: Patch, edits: Sequence[Edit], context: EditContext) -> str | None:
        """See `Editor.objection`: none."""
        return None

    def _require_positions(self, task_model: TaskModel) -> None:
        """Raise EditError for a model whose answer no single token predicts."""
        if task_model.task.name == "classification" and not task_model.has_rows:
            raise EditError(
                f"{self.name} reads gradients at the token that predicts an answer, and this "
                "classifier reads all tokens of a text: choose another editor, such as ft-last."
            )

    def _read(
        self, edits: Sequence[Edit], matrices: Sequence[EditableMatrix], context: EditContext
    ) -> Iterator[EditRows]:
        """Read each edit's rows in passes of its own, which depend on no other edit."""
        modules = {matrix.path: matrix.module for matrix in matrices}
        for edit in edits:
            texts = edit.encodings if self.config.rephrases else edit.encodings[: edit.forms]
            rows = read_rows(context.site, modules, texts, whole=self.reads_whole_texts)
            if self.reads_whole_texts:
                rows = with_gradient(rows, {m.path: m.shape[0] for m in matrices})
            yield EditRows(edit, texts, rows)

    def _patch(
        self, batch: GradientBatch, context: EditContext, draft: _Draft
    ) -> GradientPatch | None:
        """Return the patch of a batch; None if every edit of it fails."""
        growth, narrowing = ATTEMPT_GROWTH**context.attempt, NARROWING**context.narrow
        searches = self.config.scale_max > 1
        start = dict.fromkeys(batch.owners, narrowing * (1.0 if searches else growth))
        updates = self.updates(batch, context)
        if not searches:
            draft.note(batch, start)
            return updates.patch(start)
        scales, leads = ScaleSearch(
            context.site,
            updates.patch,
            {part.edit.id: part.texts for part in batch.edits},
            narrowing * growth * self.config.scale_max,
            self.config.margin * 0.5**context.narrow,
        ).run(start)
        draft.refuse({owner: self._reason(lead, scales[owner]) for owner, lead in leads.items()})
        rest = batch.without(leads)
        draft.note(rest, scales)
        if not rest.edits:
            return None
        return (self.updates(rest, context) if leads else updates).patch(scales)

    def updates(self, batch: GradientBatch, context: EditContext) -> Updates:
        """Return the updates of a batch, solved for its shifts. Raises Unsolvable."""
        shifts, priors = self.shifts(batch, context), self._priors(batch.matrices, context)
        left = {
            matrix.path: left_factor(
                batch.rows(matrix)[:, : matrix.shape[0]],
                priors[matrix.path],
                matrix.past_inputs if self.config.memory else None,
            )
            for matrix in batch.matrices
        }
        return Updates(batch, left, shifts)

    def _priors(
        self, matrices: Sequence[EditableMatrix], context: EditContext
    ) -> Mapping[str, Prior]:
        """Return λI + μC₀ of each matrix, by path; C₀ is read once in a run."""
        weight = self.config.moment_weight
        texts = base_texts(context.known_answers(), context.seed) if weight else []
        key = (context.site.edited.base.fingerprint, tuple(texts))
        if self._known_priors is None or self._known_priors[0] != key:
            modules = {matrix.path: matrix.module for matrix in matrices}
            moments = input_moments(context.site, modules, texts) if texts else {}
            priors = {
                m.path: Prior(self.ridge(m.path, context), _times(weight, moments.get(m.path)))
                for m in matrices
            }
            self._known_priors = key, priors
        return self._known_priors[1]

    def ridge(self, path: str, context: EditContext) -> float:
        """Return λ of a matrix."""
        return self.config.ridge

    def _reason(self, lead: float, scale: float) -> str:
        return (
            f"its answer leads by {lead:.2g} logits with an update of {scale:g} times its size, "
            f"less than the margin: go on with another editor, or raise scale_max under "
            f"[{self.config.table}]"
        )


@dataclass(frozen=True)
class _Draft:
    """The failures and notes of a proposal, collected by request."""

    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def finite(self, parts: Iterator[EditRows]) -> Iterator[EditRows]:
        """Yield the edits whose rows are finite; record the others as failed."""
        for part in parts:
            if all(bool(rows.isfinite().all()) for rows in part.rows.values()):
                yield part
            else:
                self.failed[part.edit.id] = "its gradients ran into NaN or infinity"

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Record failures."""
        self.failed.update(reasons)

    def note(self, batch: GradientBatch, scales: Mapping[str, float]) -> None:
        """Note the rows and the scale of each edit."""
        for part in batch.edits:
            self.notes[part.edit.id] = {"rows": part.tokens, "scale": scales[part.edit.id]}


def _times(weight: float, moment: Tensor | None) -> Tensor | None:
    return None if moment is None else weight * moment


def _finite(factors: Factors) -> Factors:
    """Return the factors. Raises Unsolvable if they do not fit float32."""
    if not bool(factors.left.isfinite().all() and factors.right.isfinite().all()):
        raise Unsolvable("An update is too large for float32.")
    return factors
