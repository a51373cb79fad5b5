"""The calibration run: tries the settings of one editor axis by axis, each on top of the best ones.

Stores each trial as it ends, so that an interrupted run can resume. Knows the order of the trials;
leaves a trial to `trials`, and the choice to `choosing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from continual.calibration.choosing import TOLERANCE, best, bound, score
from continual.calibration.config import CalibrationConfig
from continual.calibration.kept import BUDGET, Calibrated, CalibrationCache, Purpose, Trial
from continual.calibration.side_by_side import run_stage
from continual.calibration.trials import Evidence, TrialRunner
from continual.grids import GridAxis, TriedSettings

DIGITS = 3  # of a budget
LOOKED_AT_FROM, LOOKED_AT_BY, GONE_ON_WITH = 4, 6, 3
"""An axis with more alternatives than the first number tries each with the second number of facts
first, and the best of them, the third number, with all facts."""


@dataclass(frozen=True)
class Calibration:
    """The calibration of one editor on one base model. The model has to be at base."""

    trials: TrialRunner
    kept: CalibrationCache
    config: CalibrationConfig
    given: TriedSettings  # the lines of `[editor.NAME]`, which are not tried

    @property
    def purpose(self) -> Purpose:
        """The base model and given settings that this calibration is for."""
        return Purpose(self.trials.site.edited.base.fingerprint, self.given)

    def run(self) -> Iterator[Calibrated]:
        """Run the trials that are still missing, and yield the state after each of them; the last
        state has the chosen settings."""
        state = self._begun()
        if state.chosen is not None:
            yield state
            return
        settings: dict[str, Any] = {}
        if self.trials.facts:
            self.trials.grid.prepare(self.trials.statistics)
            for axis in self._open_axes():
                for trial_state in self._axis(state, axis, settings):
                    state = trial_state
                    yield state
                tolerance = TOLERANCE if axis.is_by_cost else 0.0
                settings = {**settings, **best(state.of_axis(axis.name), tolerance).settings}
            if self._is_bounded:
                for bound_state in self._bounded(state, settings):
                    state = bound_state
                    yield state
                settings |= self._bound(state)
        state = replace(state, chosen=self._new(settings))
        self.kept.put(state)
        yield state

    def _begun(self) -> Calibrated:
        """Return the state of an earlier run if it is finished or used the same facts, else an
        empty state."""
        sample = self.trials.sample
        sample_name = {
            "source": sample.source,
            "facts": len(self.trials.facts),
            "digest": sample.digest,
        }
        state = self.kept.get(self.trials.name, self.purpose)
        if state is not None and (state.chosen is not None or state.sample == sample_name):
            return state
        return Calibrated(self.trials.name, self.purpose, sample_name)

    def _open_axes(self) -> list[GridAxis]:
        """Return the axes with at least one setting that `[editor.NAME]` does not give."""
        return [axis for axis in self.trials.grid.axes if set(axis.settings) - set(self.given)]

    def _choices(self, axis: GridAxis, chosen: TriedSettings) -> list[TriedSettings]:
        """Return the alternatives of an axis, each once, added to the settings chosen so far; given
        settings take precedence."""
        alternatives: list[TriedSettings] = []
        for choice in axis.choices({**chosen, **self.given}):
            settings = {**chosen, **choice, **self.given}
            if settings not in alternatives:
                alternatives.append(settings)
        return alternatives

    def _axis(
        self, state: Calibrated, axis: GridAxis, chosen: TriedSettings
    ) -> Iterator[Calibrated]:
        """Try the alternatives of an axis, and yield the state after each trial. Many alternatives
        are tried with a few facts first, and only the best with all facts."""
        choices = self._choices(axis, chosen)
        if len(choices) > LOOKED_AT_FROM and len(self.trials.facts) > LOOKED_AT_BY:
            name, preview = f"{axis.name}: first look", self.trials.with_facts(LOOKED_AT_BY)
            for trial_state in self._stage(state, name, preview, choices):
                state = trial_state
                yield state
            ranking = sorted(state.of_axis(name), key=score, reverse=True)  # first of equals first
            finalists = [dict(evidence.settings) for evidence in ranking[:GONE_ON_WITH]]
            choices = [settings for settings in choices if dict(settings) in finalists]
        yield from self._stage(state, axis.name, self.trials, choices)

    def _stage(
        self, state: Calibrated, axis: str, trials: TrialRunner, choices: Sequence[TriedSettings]
    ) -> Iterator[Calibrated]:
        """Run the trials of an axis that are missing, side by side where there are workers, and
        yield the state after each. If another axis tried some settings with all facts, their
        evidence is used again."""
        pending = [settings for settings in choices if not _is_tried(state, axis, settings)]
        earlier = [self._earlier(state, trials, settings) for settings in pending]
        new = [s for s, evidence in zip(pending, earlier, strict=True) if evidence is None]
        results = run_stage(trials, self.kept.store, new)
        for evidence in earlier:
            state = self._with(state, Trial(axis, evidence or next(results)))
            yield state

    def _with(self, state: Calibrated, trial: Trial) -> Calibrated:
        state = state.with_trial(trial)
        self.kept.put(state)
        return state

    def _earlier(
        self, state: Calibrated, trials: TrialRunner, settings: TriedSettings
    ) -> Evidence | None:
        """Return the evidence of these settings with all facts; None if they were not tried, or
        only some facts are now."""
        if trials is not self.trials:
            return None
        matches = (
            t.evidence
            for t in state.trials
            if t.evidence.settings == settings and t.evidence.facts == len(trials.facts)
        )
        return next(matches, None)

    def _new(self, chosen: TriedSettings) -> dict[str, Any]:
        return {name: value for name, value in chosen.items() if name not in self.given}

    # -- the budget

    @property
    def _is_bounded(self) -> bool:
        budget = self.trials.grid.budget
        return budget is not None and budget.setting not in self.given

    def _bounded(self, state: Calibrated, chosen: TriedSettings) -> Iterator[Calibrated]:
        if state.of_axis(BUDGET):  # of an interrupted run: a curve's sizes need one patch
            trials = tuple(trial for trial in state.trials if trial.axis != BUDGET)
            state = replace(state, trials=trials)
        for evidence in self.trials.budget_curve({**chosen, **self.given}, self.config.stays_min):
            state = self._with(state, Trial(BUDGET, evidence))
            yield state

    def _bound(self, state: Calibrated) -> TriedSettings:
        """Return the budget's setting; empty if no size of the patch stays within the bound."""
        budget = self.trials.grid.budget
        assert budget is not None
        value = bound(state.of_axis(BUDGET), self.config.stays_min)
        return {budget.setting: float(f"{value:.{DIGITS}g}")} if value else {}


def _is_tried(state: Calibrated, axis: str, settings: TriedSettings) -> bool:
    return any(dict(evidence.settings) == dict(settings) for evidence in state.of_axis(axis))


def told(calibrated: Calibrated) -> Sequence[str]:
    """Return the chosen settings as lines of `cedit.toml`."""
    return [f"{name} = {_toml(value)}" for name, value in (calibrated.chosen or {}).items()]


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return str(list(value)) if isinstance(value, list | tuple) else f"{value}".lower()
