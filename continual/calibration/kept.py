"""Calibrations as a store's cache keeps them: one for each editor and purpose, trial by trial.

The base's fingerprint and the settings that people gave name what a calibration is for. It is safe
to delete: every revision records the settings that it used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from continual.calibration.choosing import score
from continual.calibration.trials import Evidence
from continual.grids import Settings
from store import Store, StoreError

BUDGET = "budget"
"""The name of the last axis, whose trials are one patch in several sizes."""
VERSION = 1
"""Of how settings are tried and chosen: kept calibrations of another one are made anew."""


@dataclass(frozen=True)
class Purpose:
    """What a calibration is for."""

    base: str  # fingerprint
    given: Settings  # the editor's own table, whose settings are not tried

    def to_json(self) -> dict[str, Any]:
        """As it is kept."""
        return {"version": VERSION, "base": self.base, "given": _plain(self.given)}

    def place(self, editor: str) -> str:
        """Where the calibration of an editor lies in the cache."""
        text = json.dumps([editor, self.to_json()], sort_keys=True)
        return f"calibration/{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Trial:
    """Evidence, and the axis that it was tried for."""

    axis: str
    evidence: Evidence

    def to_json(self) -> dict[str, Any]:
        """As it is kept and printed."""
        return {"axis": self.axis, **self.evidence.to_json(), "score": score(self.evidence)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Trial:
        """Read it back."""
        fields = {k: v for k, v in record.items() if k not in ("axis", "score")}
        return cls(record["axis"], Evidence.from_json(fields))


@dataclass(frozen=True)
class Calibrated:
    """What was tried of an editor on a base model so far, and what was chosen when all is."""

    editor: str
    purpose: Purpose
    sample: Mapping[str, Any] = field(default_factory=dict)  # source, facts, digest
    trials: tuple[Trial, ...] = ()
    chosen: Settings | None = None  # None: not all is tried yet

    def with_trial(self, trial: Trial) -> Calibrated:
        """The same with one more trial."""
        return replace(self, trials=(*self.trials, trial))

    def of_axis(self, axis: str) -> list[Evidence]:
        """The evidence of an axis."""
        return [trial.evidence for trial in self.trials if trial.axis == axis]

    @property
    def evidence(self) -> Evidence | None:
        """Of what was chosen, with most facts."""
        chosen = _plain({**(self.chosen or {}), **self.purpose.given})
        alike = [
            trial.evidence
            for trial in self.trials
            if trial.axis != BUDGET and _is_part(_plain(trial.evidence.settings), chosen)
        ]
        return max(alike, key=lambda evidence: evidence.facts, default=None)

    def to_json(self) -> dict[str, Any]:
        """As it is kept and printed."""
        return {
            "editor": self.editor,
            "made_for": self.purpose.to_json(),
            "sample": dict(self.sample),
            "trials": [trial.to_json() for trial in self.trials],
            "chosen": None if self.chosen is None else dict(self.chosen),
        }


@dataclass(frozen=True)
class Kept:
    """The calibrations in a store's cache."""

    store: Store

    def get(self, editor: str, purpose: Purpose) -> Calibrated | None:
        """What is kept for this purpose, finished or not; None where nothing is, or not to be
        read."""
        try:
            cached = self.store.cached(purpose.place(editor))
        except StoreError:
            return None
        if cached is None or cached.meta.get("made_for") != purpose.to_json():
            return None
        meta = cached.meta
        trials = tuple(map(Trial.from_json, meta["trials"]))
        return Calibrated(editor, purpose, meta["sample"], trials, meta["chosen"])

    def put(self, calibrated: Calibrated) -> None:
        """Keep it in the place of what was there."""
        place = calibrated.purpose.place(calibrated.editor)
        self.store.put_cached(place, {}, calibrated.to_json())

    def drop(self, editor: str, purpose: Purpose) -> None:
        """Forget what is kept for this purpose."""
        self.store.drop_cached(purpose.place(editor))


def _is_part(settings: Settings, whole: Settings) -> bool:
    return all(name in whole and whole[name] == value for name, value in settings.items())


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings as JSON has them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in sorted(settings.items())}
