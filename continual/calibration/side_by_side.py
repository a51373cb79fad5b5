"""Trials side by side: the trials of a stage as items of a map, which workers can take.

Every trial of a stage starts from the findings that were there when the stage began (values that
trials with the same search share), and its own come back with its evidence. So the bits of a trial
do not depend on the process that runs it. Leaves a trial to `trials`, and processes to an executor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from continual.calibration.facts import Sample
from continual.calibration.trials import Evidence, TrialRunner
from continual.choices import EDITORS
from continual.execution.local import LOCAL
from continual.grids import TriedSettings
from continual.memory.recall import MemoryConfig, Recall
from continual.proposals import Findings
from continual.settings import StoreSettings
from continual.site import Site
from continual.statistics import Statistics
from store import Store


@dataclass(frozen=True)
class StageTrials:
    """The trials of one stage in a form that travels: the process that runs one of them makes the
    editor's grid, statistics and memory for itself."""

    editor: str
    store: Store
    site: Site
    sample: Sample
    seed: int
    count: int | None  # of the facts, from the first; None: all
    findings: Mapping[str, Findings]  # at the stage's beginning

    @classmethod
    def of(cls, trials: TrialRunner, store: Store) -> StageTrials:
        """Return the trials of a runner, with its findings so far."""
        return cls(
            trials.name,
            store,
            trials.site,
            trials.sample,
            trials.seed,
            trials.count,
            {name: findings.copied() for name, findings in _findings(trials.kept).items()},
        )

    def run(self, settings: TriedSettings) -> tuple[Evidence, Mapping[str, Findings]]:
        """Run the trial of these settings; return its evidence, and the findings behind it."""
        kept = self._runner.kept
        for name in _findings(kept):
            del kept[name]
        kept.update({name: findings.copied() for name, findings in self.findings.items()})
        with self._recalling():
            return self._runner.run(settings), _findings(kept)

    @cached_property
    def _runner(self) -> TrialRunner:
        grid = EDITORS[self.editor].load_grid()(self.site)
        statistics = Statistics.of(self.store, self.site.edited)
        return TrialRunner(
            self.editor, grid, self.site, self.sample, statistics, self.seed, self.count
        )

    @contextmanager
    def _recalling(self) -> Iterator[None]:
        """Give the model the store's memory for a trial, if the process has none."""
        edited = self.site.edited
        if edited.recall is not None:
            yield
            return
        edited.recall = self._recall
        try:
            yield
        finally:
            edited.recall = None

    @cached_property
    def _recall(self) -> Recall:
        config = MemoryConfig.of(StoreSettings.of(self.store.settings).memory)
        return Recall(self.site.edited, config, self.store, self.site.task)


def run_stage(
    trials: TrialRunner, store: Store, choices: Sequence[TriedSettings]
) -> Iterator[Evidence]:
    """Yield the evidence of some settings in their order. An executor with workers runs the trials
    side by side; one trial, and all in one process, run on the runner itself."""
    executor = trials.site.executor
    alone_count = len(choices) if executor is LOCAL else int(_writes_neighbourhoods(trials))
    alone, beside = choices[:alone_count], choices[alone_count:]
    yield from map(trials.run, alone)
    if len(beside) < 2:
        yield from map(trials.run, beside)
        return
    stage = StageTrials.of(trials, store)
    for evidence, findings in executor.map(stage.run, beside):
        for name, found in findings.items():
            trials.kept.setdefault(name, found.copied()).take_over(found)
        yield evidence


def _writes_neighbourhoods(trials: TrialRunner) -> bool:
    """Tell whether the next trial writes the neighbourhoods that all later ones share: it comes
    before the others, in this process."""
    return trials.reads_neighbours and not trials.sample.has_neighbourhoods


def _findings(kept: Mapping[str, Any]) -> dict[str, Findings]:
    """Return the findings among the things that editors keep: the ones that can travel."""
    return {name: value for name, value in kept.items() if isinstance(value, Findings)}
