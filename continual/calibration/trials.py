"""A trial: writes a sample of facts with one setting of an editor, measures, and takes it off.

The model is as it was, bit for bit, when a trial is over. Knows the measurements; leaves the order
of the settings to `calibrating` and the choice to `choosing`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Self

import torch
from torch import Tensor

from continual.calibration.facts import CalibrationFact, Sample
from continual.editors.chains import make_editor
from continual.errors import EditError
from continual.grids import MEASURED, Grid, TriedSettings
from continual.memory.answers import AnswerJudge
from continual.patches import Patch
from continual.proposals import Edit, EditContext, Editor, KnownAnswers
from continual.queries.memory import ProtectedQueries
from continual.site import Site
from continual.site.rows import Rows
from continual.statistics import Statistics
from continual.tasks import Encoding


@dataclass(frozen=True)
class Evidence:
    """The result of a trial. Shares from 0 to 1; None where the sample has nothing to measure."""

    settings: TriedSettings
    facts: int  # that were tried
    arrives: float  # facts that are right
    generalises: float | None  # rewordings that are right
    general: float | None  # positions of held-out general text with the same next token
    neighbours: float | None  # held-out neighbours answered as before
    others: float | None  # other facts that are still right
    spent: float | None  # of the budget, where the editor has one
    seconds: float  # of editing alone, without what an earlier trial has read

    @property
    def measured(self) -> dict[str, float]:
        """All shares that were measured, by column."""
        values = ((name, getattr(self, name)) for name in MEASURED)
        return {name: value for name, value in values if value is not None}

    @property
    def stays(self) -> float:
        """The smaller share of general text and of other facts that stays; 1 without both."""
        return min((v for v in (self.general, self.others) if v is not None), default=1.0)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that the cache stores and `cedit calibrate` prints."""
        return {**asdict(self), "settings": dict(self.settings)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read evidence from its JSON object."""
        return cls(**record)


@dataclass(frozen=True)
class TrialRunner:
    """Runs trials of one editor with one sample, one after another, on the model as it stands."""

    name: str
    grid: Grid
    site: Site
    sample: Sample
    statistics: Statistics
    seed: int
    count: int | None = None  # of the facts, from the first; None: all
    kept: dict[str, Any] = field(default_factory=dict)  # by the editors of all trials

    def with_facts(self, count: int) -> TrialRunner:
        """Return the trials with the first `count` facts alone."""
        return replace(self, count=count)

    @cached_property
    def facts(self) -> list[CalibrationFact]:
        """The facts that this editor takes, up to `count`."""
        takes = self.grid.takes
        return [f for f in self.sample.facts if takes(f.encoded_request.request)][: self.count]

    @property
    def reads_neighbours(self) -> bool:
        """True if a trial needs the neighbourhoods of its facts, to edit or to measure."""
        return not self.grid.together or "neighbours" in self.grid.measured

    def run(self, settings: TriedSettings) -> Evidence:
        """Write the facts with these settings, measure, and take the patches off."""
        with self._written(settings) as (_, context, seconds):
            return self._measured(settings, context, seconds)

    def budget_curve(self, settings: TriedSettings, stays_min: float) -> list[Evidence]:
        """Write the facts, and make the patch larger or smaller until its damage crosses the bound
        `stays_min`. Return the evidence of each size: the budget spent, and the shares that stay.
        """
        budget = self.grid.budget
        assert budget is not None
        curve: list[Evidence] = []
        with self._written(settings) as (patches, context, seconds):
            depth = self.site.edited.depth - len(patches)
            begins_within: bool | None = None
            for step in range(SIZES):
                times = GROWTH ** (step if begins_within in (None, True) else -step)
                self.site.edited.take_off(depth)
                variants = [budget.grown(patch, times) for patch in patches]
                for patch in variants:
                    self.site.edited.put([patch])
                curve.append(self._measured(settings, context, seconds))
                is_within = curve[-1].stays >= stays_min
                begins_within = is_within if begins_within is None else begins_within
                if is_within != begins_within:
                    break
        return curve

    # -- writing

    @contextmanager
    def _written(self, settings: TriedSettings) -> Iterator[tuple[list[Patch], EditContext, float]]:
        """Write the facts, and take them off behind the `with` block. Yields the patches, the
        editor's context, and the seconds of editing."""
        edited = self.site.edited
        if self.reads_neighbours:
            _ = self.sample.neighbourhoods  # written before any patch of a trial is on
        depth, began = edited.depth, time.perf_counter()
        editor = make_editor(self.name, self._unbounded(settings))
        memory = ProtectedQueries(self._silent_rows.query)
        context = self._context(memory)
        try:
            groups = [self.facts] if self.grid.together else [[fact] for fact in self.facts]
            patches = [p for group in groups for p in self._write(editor, group, context)]
            edited_s = time.perf_counter() - began
            yield patches, self._context(memory), edited_s
        finally:
            edited.take_off(depth)

    def _unbounded(self, settings: TriedSettings) -> TriedSettings:
        budget = self.grid.budget
        return settings if budget is None else {**settings, budget.setting: budget.unbounded}

    def _write(
        self, editor: Editor, facts: Sequence[CalibrationFact], context: EditContext
    ) -> Iterator[Patch]:
        """Let the editor write some facts in up to `grid.attempts` attempts, and yield the patches
        that went on. Patches already on the model stay."""
        pending = list(facts)
        for attempt in range(self.grid.attempts):
            edits = [self._edit(fact) for fact in pending]
            queries = [edit.near.query for edit in edits if edit.near is not None]
            with context.memory.beside(torch.cat(queries) if queries else self._no_queries):
                proposal = editor.edit(edits, replace(context, attempt=attempt))
            if (patch := _sound(proposal.patch)) is not None:
                self.site.edited.put([patch])
                yield patch
            verdicts = self._answers.judge_in_full(
                [fact.encoded_request.learned[0] for fact in pending]
            )
            for fact, edit, is_right in zip(pending, edits, verdicts, strict=True):
                if is_right:
                    context.memory.remember(fact.id, edit.rows[0].query)
            pending = [
                fact for fact, is_right in zip(pending, verdicts, strict=True) if not is_right
            ]
            if not pending:
                return

    def _edit(self, fact: CalibrationFact) -> Edit:
        encoded_request = fact.encoded_request
        sizes = [len(encoding.targets) for encoding in encoded_request.learned]
        rows = self.site.rows(encoded_request.learned).split(sizes)
        edit = Edit(encoded_request.request, encoded_request.learned, rows, encoded_request.forms)
        if self.grid.together:  # an editor of batches reads no neighbours
            return edit
        neighbourhood = self.sample.neighbourhoods[fact.id]
        silent = [passage.encoding() for passage in neighbourhood.silent]
        near_rows = self.site.rows(silent) if silent else None
        return replace(edit, near=near_rows, wordings=neighbourhood.wordings)

    # -- the editors' inputs

    def _context(self, memory: ProtectedQueries) -> EditContext:
        generator = torch.Generator().manual_seed(self.seed)
        return EditContext(
            self.site,
            memory,
            generator,
            statistics=self.statistics,
            seed=self.seed,
            known_answers=partial(self._known_answers, memory),
            naming=self._naming,
            kept=self.kept,
        )

    def _known_answers(self, memory: ProtectedQueries) -> KnownAnswers:
        """Return the known answers of a trial: general text in memory, and the facts written so
        far."""
        encodings = {fact.id: fact.encoded_request.learned[0] for fact in self.facts}
        edits = {owner: encodings[owner] for owner in memory.owners}
        return KnownAnswers(edits=edits, general=tuple(p.ids for p in self.sample.memory))

    def _naming(self, edit: Edit) -> ProtectedQueries:
        """Return the memory of a neuron that asks for its subject: the queries of general text and
        of the edit's neighbours."""
        queries = self._no_queries if edit.near is None else edit.near.query
        return ProtectedQueries(torch.cat([self._silent_rows.query, queries]))

    @cached_property
    def _silent_rows(self) -> Rows:
        """General text in memory and other facts, at the last FFN."""
        return self.site.rows_in_passes([passage.encoding() for passage in self.sample.memory])

    @property
    def _no_queries(self) -> Tensor:
        return self._silent_rows.query[:0]

    # -- measuring

    def _spent(self, context: EditContext) -> float | None:
        """Return the part of the budget that the model now takes; None without a budget."""
        return None if self.grid.budget is None else self.grid.budget.spent(context)

    def _measured(self, settings: TriedSettings, context: EditContext, seconds: float) -> Evidence:
        shares = {name: self._share(name) for name in MEASURED}
        return Evidence(
            dict(settings),
            len(self.facts),
            arrives=shares.pop("arrives") or 0.0,
            **shares,
            spent=self._spent(context),
            seconds=round(seconds, 3),
        )

    def _share(self, name: str) -> float | None:
        """Return the share of a column's probes that the model answers rightly now; None if the
        column is not measured or has no probes."""
        encodings = self._probes(name) if name in self.grid.measured else ()
        if not encodings:
            return None
        return sum(self._answers.judge_in_full(encodings)) / len(encodings)

    def _probes(self, name: str) -> Sequence[Encoding]:
        """Return the probes of a column of MEASURED."""
        match name:
            case "arrives":
                return [fact.encoded_request.learned[0] for fact in self.facts]
            case "generalises":
                return [encoding for fact in self.facts for encoding in fact.rewordings]
            case "neighbours":
                neighbourhoods = (self.sample.neighbourhoods[fact.id] for fact in self.facts)
                return [
                    p.encoding() for neighbourhood in neighbourhoods for p in neighbourhood.held_out
                ]
            case "others":
                return self.sample.others
            case _:
                return self.sample.general

    @cached_property
    def _answers(self) -> AnswerJudge:
        return AnswerJudge(self.site)


GROWTH, SIZES = 2**0.5, 8
"""The factor between two sizes of a patch in the search for a budget's bound, and the number of
sizes at most."""


def _sound(patch: Patch | None) -> Patch | None:
    """Return the patch if it can be put on; None for a patch with NaN or infinity."""
    if patch is None:
        return None
    try:
        patch.check()
    except EditError:
        return None
    return patch
