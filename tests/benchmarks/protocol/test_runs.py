"""Runs of the protocol on a tiny model: their rows, and going on where they were interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks.protocol.runs import FoldRun, ProtocolError, ProtocolRuns, RunPlan
from benchmarks.protocol.settings import TaskSetting
from benchmarks.protocol.splits import AnsweredInput, ExampleSplits
from continual.session import Session
from tests import tiny_language as language

PLAN = RunPlan(editors=("tpatcher",), folds=2, edits=3, seed=0, train_probes=10)
TIMES = ("edit_s", "recheck_s")


def example(country: int, answer: str) -> AnsweredInput:
    return AnsweredInput(language.ask(country), answer, (language.ask(country, 1),))


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> TaskSetting:
    """Countries whose capitals are changed; every fourth of D_edit is known to be right."""
    model = language.save_decoder(tmp_path_factory.mktemp("model"), language.trained_decoder())
    edits = [
        example(n, language.capital(n + 1) if n % 4 else language.capital(n)) for n in range(12)
    ]
    train = [example(n, language.capital(n)) for n in range(12, 24)]
    test = [example(n, language.capital(n)) for n in range(24, 30)]
    splits = ExampleSplits(tuple(train), (), tuple(edits), tuple(test))
    return TaskSetting("tiny", "gpt2", {"name": "causal"}, splits, model)


def untimed(run: FoldRun) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in run.rows]


def interrupted_after(steps: int) -> Any:
    """`Session.steps` that breaks off."""
    whole = Session.steps

    def some(self: Session, *arguments: Any, **options: Any) -> Iterator[Any]:
        yield from islice(whole(self, *arguments, **options), steps)
        raise KeyboardInterrupt

    return some


def test_every_fold_meets_its_stream_up_to_as_many_edits(
    setting: TaskSetting, tmp_path: Path
) -> None:
    runs = ProtocolRuns(setting, PLAN, tmp_path).run()
    assert [(run.fold, run.editor, run.edits) for run in runs] == [
        (0, "tpatcher", 3),
        (1, "tpatcher", 3),
    ]
    assert all(run.rows[-1]["SR"] == 1.0 and run.rows[-1]["bytes"] > 0 for run in runs)
    assert all(run.base == {"train": [10, 10], "test": [6, 6]} for run in runs)
    assert runs[0].rows[0]["ER"] is None


def test_only_what_the_model_gets_wrong_is_an_edit(setting: TaskSetting, tmp_path: Path) -> None:
    runs = ProtocolRuns(setting, replace(PLAN, edits=100), tmp_path).run()
    assert all(run.exhausted for run in runs)
    assert sum(run.edits for run in runs) == 9  # of twelve, three of which are right
    assert all(row["met"] >= row["edits"] for run in runs for row in run.rows)
    assert any(run.rows[-1]["met"] > run.edits for run in runs)


def test_a_finished_run_is_read_from_its_file(
    setting: TaskSetting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ProtocolRuns(setting, PLAN, tmp_path).run()
    monkeypatch.delattr(ProtocolRuns, "_made")
    assert ProtocolRuns(setting, PLAN, tmp_path).run() == first


def test_an_interrupted_run_goes_on_to_the_same_rows(
    setting: TaskSetting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ProtocolRuns(setting, PLAN, tmp_path / "whole").run()
    with monkeypatch.context() as patch:
        patch.setattr(Session, "steps", interrupted_after(2))
        with pytest.raises(KeyboardInterrupt):
            ProtocolRuns(setting, PLAN, tmp_path / "parts").run()
    assert not list((tmp_path / "parts").glob("runs/*.json"))
    resumed = ProtocolRuns(setting, PLAN, tmp_path / "parts").run()
    assert [untimed(run) for run in resumed] == [untimed(run) for run in whole]
    assert all(set(TIMES) <= row.keys() for run in resumed for row in run.rows)


def test_more_edits_go_on_from_those_that_are_there(setting: TaskSetting, tmp_path: Path) -> None:
    (short,) = ProtocolRuns(setting, replace(PLAN, folds=1, edits=2), tmp_path).run()
    (longer,) = ProtocolRuns(setting, replace(PLAN, folds=1, edits=4), tmp_path).run()
    assert longer.edits == 4
    assert longer.rows[:2] == short.rows


def test_seconds_that_were_cut_off_are_not_known(setting: TaskSetting, tmp_path: Path) -> None:
    plan = replace(PLAN, folds=1, edits=2)
    ProtocolRuns(setting, plan, tmp_path).run()
    seconds = tmp_path / "stores" / "fold-0" / "tpatcher.seconds"
    seconds.write_text(seconds.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    (run,) = ProtocolRuns(setting, replace(plan, edits=3), tmp_path).run()
    assert ["edit_s" in row for row in run.rows] == [True, False, True]


@pytest.mark.parametrize(
    ("changed", "named"), [({"seed": 1}, "seed"), ({"folds": 3}, "folds"), ({}, "setting")]
)
def test_a_folder_with_runs_of_another_setting_is_refused(
    setting: TaskSetting, tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    ProtocolRuns(setting, PLAN, tmp_path)
    splits = setting.splits
    other = replace(setting, splits=splits if changed else replace(splits, test=splits.test[1:]))
    with pytest.raises(ProtocolError, match=f"other {named}.*another --output"):
        ProtocolRuns(other, replace(PLAN, **changed), tmp_path)


def test_a_run_with_other_settings_of_its_editor_is_refused(
    setting: TaskSetting, tmp_path: Path
) -> None:
    ProtocolRuns(setting, PLAN, tmp_path).run()
    other = replace(PLAN, editor_tables={"tpatcher": {"margin": 0.1}})
    with pytest.raises(ProtocolError, match="other settings of tpatcher"):
        ProtocolRuns(setting, other, tmp_path).run()


def test_a_result_is_one_json_file_with_the_machine(setting: TaskSetting, tmp_path: Path) -> None:
    ProtocolRuns(setting, replace(PLAN, folds=1), tmp_path).run()
    (path,) = tmp_path.glob("runs/*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "fold-0.tpatcher.json"
    assert len(record["run"]["rows"]) == 3
    assert record["machine"]["torch"]


def test_runs_of_other_outputs_stand_beside_whatever_their_training_probes(
    setting: TaskSetting, tmp_path: Path
) -> None:
    own = ProtocolRuns(setting, PLAN, tmp_path / "own")
    table = {"learning_rate": 0.01}
    plan = replace(PLAN, editors=("ft-last",), train_probes=5, editor_tables={"ft-last": table})
    made = ProtocolRuns(setting, plan, tmp_path / "other").run()
    assert own.beside([tmp_path / "other"]) == made
    assert own.beside([tmp_path / "other"], made[:1]) == []
    assert {run.label for run in made} == {"ft-last learning_rate=0.01"}


def test_what_is_of_other_folds_or_no_run_does_not_stand_beside(
    setting: TaskSetting, tmp_path: Path
) -> None:
    own = ProtocolRuns(setting, PLAN, tmp_path / "own")
    ProtocolRuns(setting, replace(PLAN, folds=3), tmp_path / "folds")
    ProtocolRuns(setting, PLAN, tmp_path / "empty")
    for name, said in [("folds", "other folds"), ("empty", "no finished run"), ("none", "no out")]:
        with pytest.raises(ProtocolError, match=said):
            own.beside([tmp_path / name])
