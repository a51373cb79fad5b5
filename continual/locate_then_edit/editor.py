"""The flow of a locate-then-edit method: values, then block after block keys and an update.

All methods share it, after MEMIT (Meng et al. 2023, algorithm 1). The flow leaves the solve for an
update to each of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from continual.effects.parameters import ParameterEdits
from continual.errors import EditError
from continual.locate_then_edit.config import LocateThenEditConfig, default_blocks
from continual.locate_then_edit.contexts import write_contexts
from continual.locate_then_edit.drift import drift_of
from continual.locate_then_edit.edit_texts import EditTexts, texts_of_edit
from continual.locate_then_edit.keys import Keys, read_keys, read_states
from continual.locate_then_edit.moments import BlockMoments, PreparedForm
from continual.locate_then_edit.pinning import pinned
from continual.locate_then_edit.places import FoundValues
from continual.locate_then_edit.searchable import readable, unsearchable
from continual.locate_then_edit.solves import Solution, Unsolvable
from continual.locate_then_edit.subjects import SubjectMissing
from continual.locate_then_edit.targets import TargetValues
from continual.model import EditedModel
from continual.patches import Patch
from continual.patches.low_rank import Factors, FfnLowRankPatch
from continual.proposals import Edit, EditContext, Proposal

VALUES = "values found"
"""The name of the values that are kept in `EditContext.kept`."""
FULL = 0.95
"""The share of the drift budget at which no more values are searched for."""

EditorConfig = TypeVar("EditorConfig", bound=LocateThenEditConfig)


@dataclass(frozen=True)
class Update(Generic[EditorConfig, PreparedForm]):
    """The inputs of the solve for one block's update."""

    keys: Keys
    residual: Tensor  # R [n, d]: the change that the update has to make in the block's output
    moments: PreparedForm
    weight: ParameterEdits
    config: EditorConfig


class LocateThenEditEditor(ABC, Generic[EditorConfig, PreparedForm]):
    """A method that edits FFN output matrices so that they give new values at subjects."""

    name: str
    attempts = 2
    tolerance = 0.5
    splits = True
    crowds = False
    narrows = False

    def __init__(self, config: EditorConfig) -> None:
        self.config = config
        self._moments = BlockMoments(self.name, self.prepare)

    # -- the parts that each method defines

    @abstractmethod
    def prepare(self, moment: Tensor, device: torch.device) -> PreparedForm:
        """Return the form of a block's C₀ [d_ff, d_ff] that its updates need. Raises Unsolvable."""

    @abstractmethod
    def solve(self, update: Update[EditorConfig, PreparedForm]) -> tuple[Solution, Tensor]:
        """Solve for one block's ΔW = A·R; return A, as a Solution, and R [n, d]. Raises
        Unsolvable."""

    def rounds(self, batch: Sequence[EditTexts]) -> Iterable[Sequence[EditTexts]]:
        """Return the groups of edits to solve for together, one group after another."""
        return [batch] if batch else []

    def chosen_blocks(self, blocks: tuple[int, ...]) -> tuple[int, ...]:
        """Return the blocks to edit out of the default `blocks`."""
        return blocks

    def minded(self, keys: Keys) -> Tensor | None:
        """Return the keys [n, d_ff] float32 of an update that later steps must respect, if any."""
        return None

    # -- the editor

    def edit(self, edits: Sequence[Edit], context: EditContext) -> Proposal:
        """See `Editor.edit`. A retry takes twice the steps.

        A request without a subject fails alone; if the drift budget is used up, all fail before
        the search for values. Raises EditError without statistics, and for a model that is no
        decoder.
        """
        config = replace(self.config, steps_max=self.config.steps_max * 2**context.attempt)
        draft = _ProposalDraft()
        batch = draft.batch(edits, config, context)
        refusal = (unsearchable(context.site.edited) or self._full(context)) if batch else None
        if refusal is not None:
            draft.refuse({edit_texts.id: refusal for edit_texts in batch})
            return Proposal(None, draft.failed)
        subjects = frozenset(edit.request.named_subject for edit in edits) - {""}
        task = _Task(config, context, subjects)
        with readable(context.site.edited), _scaffold(context.site.edited) as scaffold:
            for group in self.rounds(batch):
                part_count = len(scaffold.parts)
                try:
                    self._round(group, task, draft, scaffold)
                except Unsolvable as error:
                    scaffold.keep(part_count)
                    draft.refuse({edit_texts.id: str(error) for edit_texts in group})
            return Proposal(_joined(scaffold.parts), draft.failed, draft.notes)

    def objection(self, patch: Patch, edits: Sequence[Edit], context: EditContext) -> str | None:
        """See `Editor.objection`: a matrix must not drift too far from the base."""
        assert isinstance(patch, FfnLowRankPatch)
        for name, factors in patch.factors.items():
            block = patch.blocks[name]
            drift = self._drift(block, context, factors)
            if not drift <= self.config.drift_max:
                return self._over(
                    f"what the output matrix of block {block} gives to other tokens would be "
                    f"{drift:.2g} of its own size away from the base, more than the "
                    f"{self.config.drift_max:.2g} allowed"
                )
        return None

    def _full(self, context: EditContext) -> str | None:
        """Return a refusal for all requests if a block has used up FULL of its drift budget."""
        for block in sorted({*self._blocks(context)} & context.site.edited.reach.blocks):
            drift = self._drift(block, context)
            if drift > FULL * self.config.drift_max:
                return self._over(
                    f"there is no room for it: what the output matrix of block {block} gives to "
                    f"other tokens is {drift:.2g} of its own size away from the base already, of "
                    f"{self.config.drift_max:.2g} allowed"
                )
        return None

    def _drift(self, block: int, context: EditContext, added: Factors | None = None) -> float:
        """Return the drift of a block's matrix from the base, with a ΔW `added` to it if given."""
        weight = context.site.edited.weight(block)
        base = weight.base.float()
        change = weight.change
        if added is not None:
            change = change.addmm_(added.left.to(base), added.right.to(base))
        return drift_of(base, change, self._moments.moment(block, context).to(base))

    def _over(self, why: str) -> str:
        """Return the reason with its remedy: another editor, or a larger `drift_max`."""
        return (
            f"{why}: go on with another editor, as `auto` does, or raise drift_max under "
            f"[{self.config.table}]"
        )

    # -- one round

    def _round(
        self,
        batch: Sequence[EditTexts],
        task: _Task[EditorConfig],
        draft: _ProposalDraft,
        scaffold: _Scaffold,
    ) -> None:
        """Make the updates of some edits on top of all earlier ones, block after block."""
        config, site, blocks = task.config, task.context.site, self._blocks(task.context)
        scaffold.put_on()
        values: FoundValues = task.context.kept.setdefault(VALUES, FoundValues())
        batch, targets = values.located(site, batch, blocks[-1], config)
        if config.pin_norms:
            targets = pinned(site, batch, targets, blocks[-1], config)
        batch, targets = draft.accepted(batch, targets, config)
        for number, block in enumerate(blocks if batch else ()):
            scaffold.put_on()
            states = targets.before if number == 0 else read_states(site, batch, blocks[-1])
            residual = (targets.states - states) / (len(blocks) - number)
            keys = read_keys(site, batch, block)
            weight = site.edited.weight(block)
            moments = self._moments.form(block, task.context, config.general_weight, task.subjects)
            update = Update(keys, residual, moments, weight, config)
            minded = self.minded(keys)
            solution, addends = self.solve(update)
            draft.solved(batch, solution)
            factors = factors_of(solution.left, addends)
            minds = {} if minded is None else {block: minded}
            owners = tuple(edit_texts.id for edit_texts in batch)
            scaffold.parts.append(FfnLowRankPatch.of({block: factors}, minds, owners))

    def _blocks(self, context: EditContext) -> tuple[int, ...]:
        """Return the blocks to edit. Raises EditError for a block that the model does not have, and
        for a model with an encoder; ModelError for one without FFNs that add to the residual
        sum."""
        anatomy = context.site.edited.anatomy
        anatomy.require_ffn()
        if anatomy.encoder is not None:
            raise EditError(f"{self.name} edits decoders only: choose another editor.")
        default = self.chosen_blocks(default_blocks(anatomy.block_count))
        blocks = self.config.blocks or default
        if not 0 <= blocks[0] <= blocks[-1] <= anatomy.last:
            raise EditError(
                f"[{self.config.table}] blocks = {list(blocks)}: the model has blocks 0 to "
                f"{anatomy.last}."
            )
        return blocks


@dataclass(frozen=True)
class _Task(Generic[EditorConfig]):
    """The circumstances of one proposal."""

    config: EditorConfig  # of this attempt
    context: EditContext
    subjects: frozenset[str]  # that its edits name, normalised


def factors_of(left: Tensor, right: Tensor) -> Factors:
    """Return ΔW = A·R as factors A [d_ff, n] and R [n, d] in float32. Raises Unsolvable if they do
    not fit float32."""
    factors = Factors(left.float(), right.to(left.device).float())
    if not bool(factors.left.isfinite().all() and factors.right.isfinite().all()):
        raise Unsolvable("An update is too large for float32.")
    return factors


_AT_SUBJECT = "its subject is in its prompt"
_AT_END = "its subject is in its prompt, but its answer is found at the prompt's end"
_AT_TOKENS = "its subject is in its prompt, but each token of its answer is found where it is said"


@dataclass(frozen=True)
class _ProposalDraft:
    """The failures and notes of a proposal, collected by request."""

    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def batch(
        self, edits: Sequence[Edit], config: LocateThenEditConfig, context: EditContext
    ) -> list[EditTexts]:
        """Return the texts of the edits that have a subject; record the others as failed."""
        contexts = write_contexts(
            context.site, config.contexts, config.context_tokens, context.generator
        )
        result = []
        for edit in edits:
            try:
                result.append(texts_of_edit(edit, contexts, context.site))
            except SubjectMissing as error:
                self.failed[edit.id] = str(error)
        return result

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Record failures."""
        self.failed.update(reasons)
        for identity in reasons:
            self.notes.pop(identity, None)

    def solved(self, batch: Sequence[EditTexts], solution: Solution) -> None:
        """Record the condition and the residual of a solve: the worst over the blocks."""
        for edit_texts in batch:
            notes = self.notes[edit_texts.id]
            for name in ("condition", "residual"):
                value = max(getattr(solution, name), notes.get(name, 0.0))
                notes[name] = float(f"{value:.3g}")

    def accepted(
        self, batch: Sequence[EditTexts], targets: TargetValues, config: LocateThenEditConfig
    ) -> tuple[list[EditTexts], TargetValues]:
        """Return the edits' texts with a usable target, and these targets; record the others as
        failed. An edit with a value for each token of its answer needs all of them."""
        for edit_texts, reason in zip(batch, _refusals(batch, targets, config), strict=True):
            if reason is not None:
                self.failed[edit_texts.id] = reason
        indices = [i for i, edit_texts in enumerate(batch) if edit_texts.id not in self.failed]
        counts = Counter(batch[i].id for i in indices)
        for i in indices:
            identity, notes = batch[i].id, self.notes.get(batch[i].id, {})
            where = _AT_END if batch[i].is_at_end else _AT_SUBJECT
            self.notes[identity] = {
                "chosen_for": where if counts[identity] == 1 else _AT_TOKENS,
                "steps": targets.steps[i] + notes.get("steps", 0),
                "loss": max(round(targets.losses[i], 4), notes.get("loss", 0.0)),
                "arrived": targets.arrived[i] and notes.get("arrived", True),
            }
        return [batch[i] for i in indices], targets[indices]


def _refusals(
    batch: Sequence[EditTexts], targets: TargetValues, config: LocateThenEditConfig
) -> Iterator[str | None]:
    """Yield the reason why each target cannot be used; None for one that can."""
    for i, edit_texts in enumerate(batch):
        if not bool(targets.states[i].isfinite().all()):
            yield "the search for its value ran into NaN or infinity"
        elif config.require_arrival and not targets.arrived[i]:
            where = "at its prompt's end" if edit_texts.is_at_end else "at its subject"
            yield (
                f"no value that gives its target was found {where} in {targets.steps[i]} steps "
                f"(loss {targets.losses[i]:.2g})"
            )
        else:
            yield None


class _Scaffold:
    """The parts made so far; they stand on the model while the next ones are computed."""

    def __init__(self, edited: EditedModel) -> None:
        self._edited, self._depth = edited, edited.depth
        self.parts: list[FfnLowRankPatch] = []

    def put_on(self) -> None:
        """Put on the parts that are not on yet."""
        for part in self.parts[self._edited.depth - self._depth :]:
            self._edited.put([part])

    def keep(self, count: int) -> None:
        """Forget all parts but the first `count`."""
        self._edited.take_off(min(self._edited.depth, self._depth + count))
        del self.parts[count:]

    def take_down(self) -> None:
        """Take all parts off the model."""
        self._edited.take_off(self._depth)


@contextmanager
def _scaffold(edited: EditedModel) -> Iterator[_Scaffold]:
    scaffold = _Scaffold(edited)
    try:
        yield scaffold
    finally:
        scaffold.take_down()


def _joined(parts: Sequence[FfnLowRankPatch]) -> FfnLowRankPatch | None:
    """Join the parts into one patch that adds the same columns in the same order; None without
    parts."""
    if not parts:
        return None
    block = next(iter(parts[0].factors))
    (patch,) = FfnLowRankPatch.joined(parts)
    owners = tuple(owner for part in parts if block in part.factors for owner in part.owners)
    return replace(patch, owners=owners)
