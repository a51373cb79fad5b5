"""The clock of a step gives every second to a stage."""

from __future__ import annotations

import pytest

from continual.step.clock import COMMIT, EDIT, PROBE, RECHECK, StageClock


def test_laps_of_a_stage_add_up_and_nothing_between_them_is_lost(monkeypatch):
    readings = iter([10.0, 11.0, 13.0, 13.5, 14.0, 22.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(readings))
    clock = StageClock()
    for stage in (EDIT, PROBE, EDIT, RECHECK, COMMIT):
        clock.lap(stage)
    assert clock.seconds == {EDIT: 1.5, PROBE: 2.0, RECHECK: 0.5, COMMIT: 8.0}
    assert sum(clock.seconds.values()) == pytest.approx(22.0 - 10.0)


def test_the_record_has_what_is_over_when_it_is_written():
    assert list(StageClock().to_json()) == ["edit_s", "probe_s", "recheck_s"]
