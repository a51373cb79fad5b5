"""A long run leaves a line for every step, and one that was stopped goes on where it was."""

from __future__ import annotations

import pytest

from benchmarks.long_streams import RATES, StreamRun, _read, run, summaries
from benchmarks.scope_data import DATA

pytestmark = pytest.mark.skipif(
    not (DATA / "pararel").is_dir(), reason="ParaRel is not in the data folder"
)
SAME = ("edits", "failed", "neurons", "probes", "patch_bytes", "atlas", "pararel", *RATES)


def test_a_run_that_goes_on_is_as_one_that_was_never_stopped(tmp_path):
    chosen = StreamRun("tpatcher")
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for folder, ends in ((stopped, (5, 12)), (whole, (12,))):
        folder.mkdir()
        for edits in ends:
            run(chosen, folder, edits)
    lines = [_read(folder / "tpatcher.jsonl") for folder in (stopped, whole)]
    same = [[[row[name] for name in SAME] for row in rows] for rows in lines]
    assert same[0] == same[1]
    assert lines[1][-1]["edits"] == 12
    assert lines[1][-1]["atlas"][1] + lines[1][-1]["pararel"][1] > 12


def line(edits: int, **more: object) -> dict[str, object]:
    times = {"edit_ms": float(edits), "probe_ms": 1.0, "recheck_ms": 2.0}
    sizes = {"probes": 9, "neurons": edits, "resident_mb": 7.0, "patch_bytes": 10}
    return {"edits": edits, "failed": int(edits % 50 == 0), **times, **sizes, **more}


def test_the_table_has_a_row_for_every_mark_that_was_reached_and_for_the_end():
    rows = [line(edits, ER=1 - edits / 1000, atlas=[edits, 2 * edits]) for edits in range(1, 321)]
    found = summaries("tpatcher", rows)
    assert [row["edits"] for row in found] == [100, 300, 320]
    assert [row["failed"] for row in found] == [2, 6, 6]
    assert found[0]["ER"] == pytest.approx(0.9) and found[0]["GR_atlas"] == 0.5
    assert found[0]["GR_pararel"] is None
    assert found[0]["edit_ms"] == pytest.approx(99.5)  # the median of 75 to 124
    assert found[-1]["patches_mb"] == pytest.approx(3200 / 1e6)


def test_where_steps_are_not_rechecked_a_mark_has_the_metrics_of_the_next_that_is():
    rows = [
        line(edits, **({"ER": edits / 1000} if edits % 30 == 0 else {}))
        for edits in range(10, 321, 10)
    ]
    assert [row["ER"] for row in summaries("memit", rows)] == [0.12, 0.3, None]
