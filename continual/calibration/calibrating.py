"""The run: axis after axis the settings of one editor are tried, and the best are gone on with.

Each trial is kept as it ends, so that a run that was interrupted goes on. Knows the order; a trial
is `trials`', and the choice `choosing`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from continual.calibration.choosing import best, bound, score
from continual.calibration.config import CalibrationConfig
from continual.calibration.kept import BUDGET, Calibrated, Kept, Purpose, Trial
from continual.calibration.trials import Trials
from continual.grids import Axis, Settings

DIGITS = 3  # of a budget
LOOKED_AT_FROM, LOOKED_AT_BY, GONE_ON_WITH = 4, 6, 3
"""Of more alternatives than the first number each is tried with so many facts, and the best so many
with all."""


@dataclass(frozen=True)
class Calibration:
    """One editor on one base model, which the model stands at."""

    trials: Trials
    kept: Kept
    config: CalibrationConfig
    given: Settings  # what `[editor.NAME]` says: it is not tried

    @property
    def purpose(self) -> Purpose:
        """What is measured for."""
        return Purpose(self.trials.site.edited.base.fingerprint, self.given)

    def run(self) -> Iterator[Calibrated]:
        """Try what was not tried yet, and give what is known behind each trial; the last one has
        what was chosen."""
        state = self._begun()
        if state.chosen is not None:
            yield state
            return
        chosen: dict[str, Any] = {}
        if self.trials.facts:
            self.trials.grid.prepare(self.trials.statistics)
            for axis in self._open_axes():
                for tried in self._axis(state, axis, chosen):
                    state = tried
                    yield state
                chosen = {**chosen, **best(state.of_axis(axis.name)).settings}
            if self._is_bounded:
                for bounded in self._bounded(state, chosen):
                    state = bounded
                    yield state
                chosen |= self._bound(state)
        state = replace(state, chosen=self._new(chosen))
        self.kept.put(state)
        yield state

    def _begun(self) -> Calibrated:
        """What an earlier run has left, where it was on the same facts."""
        sample = self.trials.sample
        named = {"source": sample.source, "facts": len(self.trials.facts), "digest": sample.digest}
        found = self.kept.get(self.trials.name, self.purpose)
        if found is not None and (found.chosen is not None or found.sample == named):
            return found
        return Calibrated(self.trials.name, self.purpose, named)

    def _open_axes(self) -> list[Axis]:
        """The axes of which people have not said everything."""
        return [axis for axis in self.trials.grid.axes if set(axis.settings) - set(self.given)]

    def _choices(self, axis: Axis, chosen: Settings) -> list[Settings]:
        """The alternatives of an axis, on top of what is chosen; what people gave stays."""
        found: list[Settings] = []
        for choice in axis.choices({**chosen, **self.given}):
            settings = {**chosen, **choice, **self.given}
            if settings not in found:
                found.append(settings)
        return found

    def _axis(self, state: Calibrated, axis: Axis, chosen: Settings) -> Iterator[Calibrated]:
        """Try the alternatives of an axis. Of many only those go on to all facts that are good for
        a few."""
        choices = self._choices(axis, chosen)
        if len(choices) > LOOKED_AT_FROM and len(self.trials.facts) > LOOKED_AT_BY:
            name, few = f"{axis.name}: first look", self.trials.with_facts(LOOKED_AT_BY)
            for settings in choices:
                if not _is_tried(state, name, settings):
                    state = self._with(state, Trial(name, few.run(settings)))
                    yield state
            looks = sorted(state.of_axis(name), key=score, reverse=True)  # of equals the first
            good = [dict(evidence.settings) for evidence in looks[:GONE_ON_WITH]]
            choices = [settings for settings in choices if dict(settings) in good]
        for settings in choices:
            if not _is_tried(state, axis.name, settings):
                state = self._tried(state, axis.name, settings)
                yield state

    def _with(self, state: Calibrated, trial: Trial) -> Calibrated:
        state = state.with_trial(trial)
        self.kept.put(state)
        return state

    def _tried(self, state: Calibrated, axis: str, settings: Settings) -> Calibrated:
        """One more trial; of settings that another axis has tried the evidence is known."""
        known = (
            t.evidence
            for t in state.trials
            if t.evidence.settings == settings and t.evidence.facts == len(self.trials.facts)
        )
        return self._with(state, Trial(axis, next(known, None) or self.trials.run(settings)))

    def _new(self, chosen: Settings) -> dict[str, Any]:
        return {name: value for name, value in chosen.items() if name not in self.given}

    # -- the budget

    @property
    def _is_bounded(self) -> bool:
        budget = self.trials.grid.budget
        return budget is not None and budget.setting not in self.given

    def _bounded(self, state: Calibrated, chosen: Settings) -> Iterator[Calibrated]:
        if state.of_axis(BUDGET):  # of an interrupted run: its sizes belong together
            left = tuple(trial for trial in state.trials if trial.axis != BUDGET)
            state = replace(state, trials=left)
        for evidence in self.trials.budget_curve({**chosen, **self.given}, self.config.stays_min):
            state = self._with(state, Trial(BUDGET, evidence))
            yield state

    def _bound(self, state: Calibrated) -> Settings:
        """The budget itself; none where nothing could be written."""
        budget = self.trials.grid.budget
        assert budget is not None
        value = bound(state.of_axis(BUDGET), self.config.stays_min)
        return {budget.setting: float(f"{value:.{DIGITS}g}")} if value else {}


def _is_tried(state: Calibrated, axis: str, settings: Settings) -> bool:
    return any(dict(evidence.settings) == dict(settings) for evidence in state.of_axis(axis))


def told(calibrated: Calibrated) -> Sequence[str]:
    """What was chosen, as lines of `cedit.toml`."""
    return [f"{name} = {_toml(value)}" for name, value in (calibrated.chosen or {}).items()]


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return str(list(value)) if isinstance(value, list | tuple) else f"{value}".lower()
