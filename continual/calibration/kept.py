"""Calibrations in a store's cache: one for each editor and purpose, stored trial by trial.

A purpose is the base's fingerprint with the settings that people gave. The cache is safe to delete:
every revision records the settings that it used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from continual.calibration.choosing import score
from continual.calibration.trials import Evidence
from continual.grids import TriedSettings
from store import Store, StoreError

BUDGET = "budget"
"""The name of the last axis, whose trials are one patch in several sizes."""
VERSION = 1
"""The version of the trials and of the choice: stored calibrations of another version are made
anew."""


@dataclass(frozen=True)
class Purpose:
    """The base model and the given settings that a calibration is for."""

    base: str  # fingerprint
    given: TriedSettings  # the editor's own table, whose settings are not tried

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that the cache stores."""
        return {"version": VERSION, "base": self.base, "given": _plain(self.given)}

    def place(self, editor: str) -> str:
        """Return the place of an editor's calibration in the cache."""
        text = json.dumps([editor, self.to_json()], sort_keys=True)
        return f"calibration/{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Trial:
    """The evidence of one trial, and the axis that it belongs to."""

    axis: str
    evidence: Evidence

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that the cache stores and `cedit calibrate` prints."""
        return {"axis": self.axis, **self.evidence.to_json(), "score": score(self.evidence)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Trial:
        """Read a trial from its JSON object."""
        fields = {k: v for k, v in record.items() if k not in ("axis", "score")}
        return cls(record["axis"], Evidence.from_json(fields))


@dataclass(frozen=True)
class Calibrated:
    """The trials of an editor on a base model so far, and the chosen settings once all are done."""

    editor: str
    purpose: Purpose
    sample: Mapping[str, Any] = field(default_factory=dict)  # source, facts, digest
    trials: tuple[Trial, ...] = ()
    chosen: TriedSettings | None = None  # None: trials are missing

    def with_trial(self, trial: Trial) -> Calibrated:
        """Return the calibration with one more trial."""
        return replace(self, trials=(*self.trials, trial))

    def of_axis(self, axis: str) -> list[Evidence]:
        """Return the evidence of an axis, in the order of its trials."""
        return [trial.evidence for trial in self.trials if trial.axis == axis]

    @property
    def evidence(self) -> Evidence | None:
        """The evidence of the chosen settings, from the trial with the most facts; None without a
        trial of them."""
        settings = _plain({**(self.chosen or {}), **self.purpose.given})
        matches = [
            trial.evidence
            for trial in self.trials
            if trial.axis != BUDGET and _is_part(_plain(trial.evidence.settings), settings)
        ]
        return max(matches, key=lambda evidence: evidence.facts, default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that the cache stores and `cedit calibrate` prints."""
        return {
            "editor": self.editor,
            "made_for": self.purpose.to_json(),
            "sample": dict(self.sample),
            "trials": [trial.to_json() for trial in self.trials],
            "chosen": None if self.chosen is None else dict(self.chosen),
        }


@dataclass(frozen=True)
class CalibrationCache:
    """The calibrations in a store's cache."""

    store: Store

    def get(self, editor: str, purpose: Purpose) -> Calibrated | None:
        """Return the stored calibration for this purpose, finished or not; None if there is none or
        it cannot be read."""
        try:
            entry = self.store.cached(purpose.place(editor))
        except StoreError:
            return None
        if entry is None or entry.meta.get("made_for") != purpose.to_json():
            return None
        meta = entry.meta
        trials = tuple(map(Trial.from_json, meta["trials"]))
        return Calibrated(editor, purpose, meta["sample"], trials, meta["chosen"])

    def put(self, calibrated: Calibrated) -> None:
        """Store a calibration in the place of the earlier one."""
        place = calibrated.purpose.place(calibrated.editor)
        self.store.put_cached(place, {}, calibrated.to_json())

    def drop(self, editor: str, purpose: Purpose) -> None:
        """Delete the stored calibration for this purpose."""
        self.store.drop_cached(purpose.place(editor))


def _is_part(settings: TriedSettings, whole: TriedSettings) -> bool:
    return all(name in whole and whole[name] == value for name, value in settings.items())


def _plain(settings: TriedSettings) -> dict[str, Any]:
    """Return settings in the form that JSON gives back: sorted by name, tuples as lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in sorted(settings.items())}
