"""The flow of a locate-then-edit method: values, then block after block keys and an update.

All methods share it, after MEMIT (Meng et al. 2023, algorithm 1). The flow leaves the solve for an
update to each of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from continual.associative.config import AssociativeConfig, default_blocks
from continual.associative.contexts import write_contexts
from continual.associative.drift import drift_of
from continual.associative.keys import Keys, read_keys, read_states
from continual.associative.lessons import Lesson, lesson_of
from continual.associative.places import located
from continual.associative.solves import Solution, Unsolvable
from continual.associative.subjects import SubjectMissing
from continual.associative.targets import Targets
from continual.effects.parameters import EditedWeight
from continual.effects.places import POOLED
from continual.errors import EditError
from continual.model import EditedModel
from continual.patches import Patch
from continual.patches.low_rank import Factors, FfnLowRankPatch
from continual.proposals import Edit, Proposal, Surroundings

FULL = 0.95
"""The share of the drift budget at which no more values are searched for."""

Config = TypeVar("Config", bound=AssociativeConfig)
Moments = TypeVar("Moments")
"""A method's preparation of C₀, made once in a run."""


@dataclass(frozen=True)
class Update(Generic[Config, Moments]):
    """The inputs of the solve for one block's update."""

    keys: Keys
    residual: Tensor  # R [n, d]: the change that the update has to make in the block's output
    moments: Moments
    weight: EditedWeight
    config: Config


class AssociativeEditor(ABC, Generic[Config, Moments]):
    """A method that edits FFN output matrices so that they give new values at subjects."""

    name: str
    attempts = 2
    tolerance = 0.5
    splits = True
    crowds = False
    narrows = False

    def __init__(self, config: Config) -> None:
        self.config = config
        self._moments: dict[tuple[str, int], _Statistics[Moments]] = {}  # by base model and block

    # -- the parts that each method defines

    @abstractmethod
    def prepare(self, moment: Tensor, device: torch.device) -> Moments:
        """Return the form of a block's C₀ [d_ff, d_ff] that its updates need. Raises Unsolvable."""

    @abstractmethod
    def solve(self, update: Update[Config, Moments]) -> tuple[Solution, Tensor]:
        """Solve for one block's ΔW = A·R; return A, as a Solution, and R [n, d]. Raises
        Unsolvable."""

    def rounds(self, lessons: Sequence[Lesson]) -> Iterable[Sequence[Lesson]]:
        """Return the groups of lessons to solve for together, one group after another."""
        return [lessons] if lessons else []

    def chosen_blocks(self, blocks: tuple[int, ...]) -> tuple[int, ...]:
        """Return the blocks to edit out of the default `blocks`."""
        return blocks

    def minded(self, keys: Keys) -> Tensor | None:
        """Return the keys [n, d_ff] float32 of an update that later steps must respect, if any."""
        return None

    # -- the editor

    def edit(self, edits: Sequence[Edit], around: Surroundings) -> Proposal:
        """See `Editor.edit`. A retry takes twice the steps.

        A request without a subject fails alone; if the drift budget is used up, all fail before
        the search for values. Raises EditError without statistics, and for a model that is no
        decoder.
        """
        config = replace(self.config, steps_max=self.config.steps_max * 2**around.attempt)
        draft = _Draft()
        lessons = draft.lessons(edits, config, around)
        refusal = (self._unsearchable(around) or self._full(around)) if lessons else None
        if refusal is not None:
            draft.refuse({lesson.id: refusal for lesson in lessons})
            return Proposal(None, draft.failed)
        with _scaffold(around.site.edited) as scaffold:
            for group in self.rounds(lessons):
                part_count = len(scaffold.parts)
                try:
                    self._round(group, config, around, draft, scaffold)
                except Unsolvable as error:
                    scaffold.keep(part_count)
                    draft.refuse({lesson.id: str(error) for lesson in group})
            return Proposal(_joined(scaffold.parts), draft.failed, draft.notes)

    def objection(self, patch: Patch, edits: Sequence[Edit], around: Surroundings) -> str | None:
        """See `Editor.objection`: a matrix must not drift too far from the base."""
        assert isinstance(patch, FfnLowRankPatch)
        for name, factors in patch.factors.items():
            block = patch.blocks[name]
            drift = self._drift(block, around, factors)
            if not drift <= self.config.drift_max:
                return self._over(
                    f"what the output matrix of block {block} gives to other tokens would be "
                    f"{drift:.2g} of its own size away from the base, more than the "
                    f"{self.config.drift_max:.2g} allowed"
                )
        return None

    def _unsearchable(self, around: Surroundings) -> str | None:
        """Return the reason why no value can be searched for, if any: some open gates need whole
        texts, and a search runs only the ends of texts, from one block upward, many in a row."""
        for effect in around.site.edited.open_gates:
            if effect.place.is_remote or effect.place.key == POOLED:
                return (
                    f"gates from {effect.place} are on, which a search for values cannot run: "
                    "go on with another editor, such as tpatcher"
                )
        return None

    def _full(self, around: Surroundings) -> str | None:
        """Return a refusal for all requests if a block has used up FULL of its drift budget."""
        for block in sorted({*self._blocks(around)} & around.site.edited.reach.blocks):
            drift = self._drift(block, around)
            if drift > FULL * self.config.drift_max:
                return self._over(
                    f"there is no room for it: what the output matrix of block {block} gives to "
                    f"other tokens is {drift:.2g} of its own size away from the base already, of "
                    f"{self.config.drift_max:.2g} allowed"
                )
        return None

    def _drift(self, block: int, around: Surroundings, added: Factors | None = None) -> float:
        """Return the drift of a block's matrix from the base, with a ΔW `added` to it if given."""
        weight = around.site.edited.weight(block)
        base = weight.base.float()
        change = weight.sum - base
        if added is not None:
            change = change.addmm_(added.left.to(base), added.right.to(base))
        return drift_of(base, change, self._prepared(block, around).moment.to(base))

    def _over(self, why: str) -> str:
        """Return the reason with its remedy: another editor, or a larger `drift_max`."""
        return (
            f"{why}: go on with another editor, as `auto` does, or raise drift_max under "
            f"[{self.config.table}]"
        )

    # -- one round

    def _round(
        self,
        lessons: Sequence[Lesson],
        config: Config,
        around: Surroundings,
        draft: _Draft,
        scaffold: _Scaffold,
    ) -> None:
        """Make the updates of some lessons on top of all earlier ones, block after block."""
        site, blocks = around.site, self._blocks(around)
        scaffold.put_on()
        lessons, targets = located(site, lessons, blocks[-1], config)
        lessons, targets = draft.accepted(lessons, targets, config)
        for number, block in enumerate(blocks if lessons else ()):
            scaffold.put_on()
            states = targets.before if number == 0 else read_states(site, lessons, blocks[-1])
            residual = (targets.states - states) / (len(blocks) - number)
            keys = read_keys(site, lessons, block)
            weight = site.edited.weight(block)
            moments = self._prepared(block, around).prepared
            update = Update(keys, residual, moments, weight, config)
            minded = self.minded(keys)
            solution, addends = self.solve(update)
            draft.solved(lessons, solution)
            factors = factors_of(solution.left, addends)
            minds = {} if minded is None else {block: minded}
            owners = tuple(lesson.id for lesson in lessons)
            scaffold.parts.append(FfnLowRankPatch.of({block: factors}, minds, owners))

    def _blocks(self, around: Surroundings) -> tuple[int, ...]:
        """Return the blocks to edit. Raises EditError for a block that the model does not have, and
        for a model with an encoder; ModelError for one without FFNs that add to the residual
        sum."""
        anatomy = around.site.edited.anatomy
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

    def _prepared(self, block: int, around: Surroundings) -> _Statistics[Moments]:
        """Return a block's statistics and the method's form of them; they are read once in a run.
        Raises EditError without statistics."""
        if around.statistics is None:
            raise EditError(
                f"{self.name} needs key statistics: run `cedit train stats --text FILE`."
            )
        edited = around.site.edited
        name = (edited.base.fingerprint, block)
        if name not in self._moments:
            device = edited.anatomy.down_weight(edited.model, block).device
            moment = around.statistics.get(block).second_moment
            self._moments[name] = _Statistics(moment.float(), self.prepare(moment, device))
        return self._moments[name]


@dataclass(frozen=True)
class _Statistics(Generic[Moments]):
    """The statistics of a block's keys, and the method's form of them."""

    moment: Tensor  # C₀ [d_ff, d_ff] float32
    prepared: Moments


def factors_of(left: Tensor, right: Tensor) -> Factors:
    """Return ΔW = A·R as factors A [d_ff, n] and R [n, d] in float32. Raises Unsolvable if they do
    not fit float32."""
    factors = Factors(left.float(), right.to(left.device).float())
    if not bool(factors.left.isfinite().all() and factors.right.isfinite().all()):
        raise Unsolvable("An update is too large for float32.")
    return factors


_AT_SUBJECT = "its subject is in its prompt"
_AT_END = "its subject is in its prompt, but its answer is found at the prompt's end"


@dataclass(frozen=True)
class _Draft:
    """The failures and notes of a proposal, collected by request."""

    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def lessons(
        self, edits: Sequence[Edit], config: AssociativeConfig, around: Surroundings
    ) -> list[Lesson]:
        """Return the lessons of the edits that have a subject; record the others as failed."""
        contexts = write_contexts(
            around.site, config.contexts, config.context_tokens, around.generator
        )
        result = []
        for edit in edits:
            try:
                result.append(lesson_of(edit, contexts, around.site))
            except SubjectMissing as error:
                self.failed[edit.id] = str(error)
        return result

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Record failures."""
        self.failed.update(reasons)
        for identity in reasons:
            self.notes.pop(identity, None)

    def solved(self, lessons: Sequence[Lesson], solution: Solution) -> None:
        """Record the condition and the residual of a solve: the worst over the blocks."""
        for lesson in lessons:
            notes = self.notes[lesson.id]
            for name in ("condition", "residual"):
                value = max(getattr(solution, name), notes.get(name, 0.0))
                notes[name] = float(f"{value:.3g}")

    def accepted(
        self, lessons: Sequence[Lesson], targets: Targets, config: AssociativeConfig
    ) -> tuple[list[Lesson], Targets]:
        """Return the lessons with a usable target, and these targets; record the others as
        failed."""
        indices = []
        for i, lesson in enumerate(lessons):
            has_arrived, steps, loss = targets.arrived[i], targets.steps[i], targets.losses[i]
            if not bool(targets.states[i].isfinite().all()):
                self.failed[lesson.id] = "the search for its value ran into NaN or infinity"
            elif config.require_arrival and not has_arrived:
                where = "at its prompt's end" if lesson.is_at_end else "at its subject"
                self.failed[lesson.id] = (
                    f"no value that gives its target was found {where} in {steps} steps "
                    f"(loss {loss:.2g})"
                )
            else:
                indices.append(i)
                self.notes[lesson.id] = {
                    "chosen_for": _AT_END if lesson.is_at_end else _AT_SUBJECT,
                    "steps": steps,
                    "loss": round(loss, 4),
                    "arrived": has_arrived,
                }
        return [lessons[i] for i in indices], targets[indices]


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
