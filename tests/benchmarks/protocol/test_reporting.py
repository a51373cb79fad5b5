"""The table over folds beside the published rows, and the curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.protocol import reporting
from benchmarks.protocol.runs import FoldRun
from benchmarks.protocol.settings import TaskSetting
from benchmarks.protocol.splits import ExampleSplits

SETTING = TaskSetting("fever", "bert", {}, ExampleSplits((), (), (), ()), Path("model"))


def row(edits: int, rate: float, **more: Any) -> dict[str, Any]:
    rates = dict.fromkeys(("SR", "GR", "ER", "TrainR", "TestR"), rate)
    return {"edits": edits, "met": 2 * edits, **rates, "bytes": 100 * edits, "edit_s": 0.5, **more}


def run(fold: int, *rows: dict[str, Any], editor: str = "tpatcher", **settings: Any) -> FoldRun:
    return FoldRun(fold, editor, False, {}, rows, settings)


RUNS = [run(0, row(1, 1.0), row(2, 0.8)), run(1, row(1, 1.0), row(2, 0.6), row(3, 0.9))]


def test_rates_are_mean_and_deviation_of_the_folds_ends() -> None:
    own = reporting.table(SETTING, RUNS)[0]
    assert own["ER"] == "0.850 ± 0.071"
    assert (own["folds"], own["edits"], own["model"]) == (2, 2.5, "bert")
    assert (own["edit_s"], own["recheck_s"]) == (0.5, None)
    assert (own["bytes"], own["met"]) == (200, 5)


def test_the_published_rows_follow_with_the_name_of_their_model() -> None:
    theirs = reporting.table(SETTING, RUNS)[1:]
    assert {row["model"] for row in theirs} == {"BERT-base, published"}
    (tpatcher,) = (row for row in theirs if row["editor"] == "tpatcher")
    assert (tpatcher["GR"], tpatcher["TrainR"]) == ("0.820", "0.999")


def test_other_settings_of_an_editor_have_a_row_of_their_own_and_one_fold_no_deviation() -> None:
    runs = [run(0, row(1, 1.0)), run(0, row(1, 0.5), margin=0.1)]
    rows = reporting.table(SETTING, runs)[:2]
    assert [(r["editor"], r["ER"]) for r in rows] == [
        ("tpatcher", "1.000"),
        ("tpatcher margin=0.1", "0.500"),
    ]


def test_a_rate_that_was_not_measured_has_no_mean() -> None:
    assert reporting.table(SETTING, [run(0, row(1, 1.0, ER=None))])[0]["ER"] is None


def test_the_initial_models_accuracies_are_told() -> None:
    runs = [FoldRun(0, "tpatcher", False, {"train": [9, 10], "test": [0, 0]}, (), {})]
    assert reporting.initial(runs) == [{"probes": "train", "asked": 10, "right": 0.9}]


def test_a_curve_is_the_mean_as_far_as_all_folds_go() -> None:
    curve = reporting.curves(RUNS)
    assert [point["edits"] for point in curve] == [1, 2]
    assert curve[1]["ER"] == pytest.approx(0.7)


def test_the_curves_are_drawn_for_every_editor(tmp_path: Path) -> None:
    names = [f"editor-{n}" for n in range(7)]
    runs = [run(0, row(1, 1.0), row(2, 0.8), editor=name) for name in names]
    reporting.draw(reporting.curves(runs), tmp_path, "curves")
    drawn = (tmp_path / "curves.svg").read_text(encoding="utf-8")
    assert (tmp_path / "curves.png").exists()
    assert all(f"<!-- {name} -->" in drawn for name in names)


@pytest.mark.filterwarnings("error")
def test_curves_of_what_was_never_measured_are_empty_panels(tmp_path: Path) -> None:
    rates = dict.fromkeys(("ER", "TrainR", "TestR"))
    reporting.draw(reporting.curves([run(0, row(1, 1.0, **rates))]), tmp_path, "none")
    assert "<!-- tpatcher -->" not in (tmp_path / "none.svg").read_text(encoding="utf-8")
