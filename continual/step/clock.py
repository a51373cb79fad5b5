"""The clock of a step: the seconds of its stages, by their names in the ledger's record."""

from __future__ import annotations

import time

EDIT, PROBE, RECHECK, COMMIT = "edit_s", "probe_s", "recheck_s", "commit_s"
RECORDED = (EDIT, PROBE, RECHECK)
"""The stages that are over when the commit writes their durations."""


class StageClock:
    """Adds up the seconds of each stage, from the clock's making on."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((*RECORDED, COMMIT), 0.0)
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap for a stage."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now

    def to_json(self) -> dict[str, float]:
        """Return the seconds that go on record, to the microsecond."""
        return {stage: round(self.seconds[stage], 6) for stage in RECORDED}
