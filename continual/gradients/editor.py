"""The flow of an editor by gradients: rows, wanted shifts, one ridge system for each matrix.

All matrices are edited from the same passes, each by itself. A method leaves the map from rows to
shifts open. The patch has a column and a row for each token of an answer, so that a request leaves
with its own, and all statistics follow from the rows on the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from continual.errors import EditError
from continual.gradients.config import ATTEMPT_GROWTH, NARROWING, GradientConfig
from continual.gradients.matrices import EditableMatrix, chosen_matrices
from continual.gradients.ridge import Unsolvable, left_factor
from continual.gradients.rows import read_rows
from continual.passes.partial import logits_of
from continual.patches import Patch
from continual.patches.gradient import GradientPatch
from continual.patches.low_rank import Factors
from continual.proposals import Edit, EditContext, Proposal
from continual.task_model import TaskModel, answer_logits
from continual.tasks import Encoding

EditorConfig = TypeVar("EditorConfig", bound=GradientConfig)


@dataclass(frozen=True)
class EditRows:
    """An edit's texts, and their rows at each matrix."""

    edit: Edit
    texts: tuple[Encoding, ...]
    rows: Mapping[str, Tensor]  # by path [tokens, inputs + outputs] float32

    @cached_property
    def tokens(self) -> int:
        """The number of tokens of its answers."""
        return sum(len(text.targets) for text in self.texts)


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

    def without(self, failed: Mapping[str, str]) -> GradientBatch:
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

    def __init__(self, config: EditorConfig) -> None:
        self.config = config

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
        matrices = chosen_matrices(context.site.edited, self.config)
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
            yield EditRows(edit, texts, read_rows(context.site, modules, texts))

    def _patch(
        self, batch: GradientBatch, context: EditContext, draft: _Draft
    ) -> GradientPatch | None:
        """Return the patch of a batch; None if every edit of it fails."""
        growth, narrowing = ATTEMPT_GROWTH**context.attempt, NARROWING**context.narrow
        searches = self.config.scale_max > 1
        scales = dict.fromkeys(batch.owners, narrowing * (1.0 if searches else growth))
        updates = self._updates(batch, context)
        if searches:
            limit = narrowing * growth * self.config.scale_max
            search = ScaleSearch(context.site, limit, self.config.margin * 0.5**context.narrow)
            failed = {
                owner: self._reason(lead, scales[owner])
                for owner, lead in search.grow(updates, scales).items()
            }
            draft.refuse(failed)
            batch = batch.without(failed)
            if not batch.edits:
                return None
            updates = self._updates(batch, context) if failed else updates
        draft.note(batch, scales)
        return updates.patch(scales)

    def _updates(self, batch: GradientBatch, context: EditContext) -> Updates:
        shifts = self.shifts(batch, context)
        left = {m.path: self._left(m, batch.rows(m), context) for m in batch.matrices}
        return Updates(batch, left, shifts)

    def _left(self, matrix: EditableMatrix, rows: Tensor, context: EditContext) -> Tensor:
        """Return A [inputs, n] of a matrix."""
        config = self.config
        past = matrix.past_inputs if config.memory else None
        inputs = rows[:, : matrix.shape[0]]
        return left_factor(inputs, config.ridge, past, self._moment(matrix, context))

    def _moment(self, matrix: EditableMatrix, context: EditContext) -> Tensor | None:
        """Return μC₀ [inputs, inputs]; None with μ = 0. Raises EditError without statistics."""
        if self.config.moment_weight == 0:
            return None
        if context.statistics is None:
            raise EditError(
                f"[{self.config.table}] moment_weight needs key statistics: run `cedit train stats "
                "--text FILE`, or set it to 0."
            )
        moment = context.statistics.get(matrix.block).second_moment
        return self.config.moment_weight * moment.double().cpu()

    def _reason(self, lead: float, scale: float) -> str:
        return (
            f"its answer leads by {lead:.2g} logits with an update of {scale:g} times its size, "
            f"less than the margin: go on with another editor, or raise scale_max under "
            f"[{self.config.table}]"
        )


@dataclass(frozen=True)
class ScaleSearch:
    """Doubles the updates of some edits until their answers lead."""

    task_model: TaskModel
    scale_max: float
    margin: float  # logits

    def grow(self, updates: Updates, scales: dict[str, float]) -> dict[str, float]:
        """Double the scales, by request, of edits whose answers lead by less than the margin, all
        updates on the model at once; return the leads of the edits that never do."""
        while True:
            leads = self.leads(updates, scales)
            short = {owner: lead for owner, lead in leads.items() if not lead >= self.margin}
            growing = [owner for owner in short if 2 * scales[owner] <= self.scale_max]
            if not growing:
                return short
            for owner in growing:
                scales[owner] *= 2

    def leads(self, updates: Updates, scales: Mapping[str, float]) -> dict[str, float]:
        """Return the smallest lead of each edit's answers, in logits, with the updates on."""
        parts = updates.batch.edits
        with _on(self.task_model, updates.patch(scales)):
            texts = [text for part in parts for text in part.texts]
            leads = iter(self.task_model.in_passes(partial(_lead, self.task_model), texts))
        return {part.edit.id: min(next(leads) for _ in part.texts) for part in parts}


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


@torch.no_grad()
def _lead(task_model: TaskModel, encodings: Sequence[Encoding]) -> list[float]:
    """Return the smallest lead of each text's answer tokens over all other tokens, in one pass."""
    logits, targets = answer_logits(
        encodings, logits_of(task_model.edited.model, task_model.inputs(encodings))
    )
    wanted = logits.gather(1, targets[:, None]).squeeze(1)
    others = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
    sizes = [len(encoding.targets) for encoding in encodings]
    return [float(lead.min()) for lead in (wanted - others).split(sizes)]


@contextmanager
def _on(task_model: TaskModel, patch: GradientPatch) -> Iterator[None]:
    """Have a patch on the model within `with`."""
    edited, depth = task_model.edited, task_model.edited.depth
    edited.put([patch])
    try:
        yield
    finally:
        edited.take_off(depth)


def _finite(factors: Factors) -> Factors:
    """Return the factors. Raises Unsolvable if they do not fit float32."""
    if not bool(factors.left.isfinite().all() and factors.right.isfinite().all()):
        raise Unsolvable("An update is too large for float32.")
    return factors
