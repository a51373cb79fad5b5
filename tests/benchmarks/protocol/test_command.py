"""The protocol's command line, on a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.protocol import __main__ as command
from benchmarks.protocol import settings
from benchmarks.protocol.settings import SettingChoices, TaskSetting
from benchmarks.protocol.splits import AnsweredInput, ExampleSplits
from tests import tiny_language as language


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[SettingChoices]:
    """What a task is asked for, where every task is the tiny language's."""
    model = language.save_decoder(tmp_path / "model", language.trained_decoder())
    heard: list[SettingChoices] = []

    def tiny(asked: SettingChoices) -> TaskSetting:
        heard.append(asked)
        edits = [AnsweredInput(language.ask(n), language.capital(n + 1)) for n in range(4)]
        known = [AnsweredInput(language.ask(n), language.capital(n)) for n in range(4, 12)]
        splits = ExampleSplits(tuple(known[:4]), (), tuple(edits), tuple(known[4:]))
        return TaskSetting("fever", asked.architecture, {"name": "causal"}, splits, model)

    for name in settings.TASKS:
        monkeypatch.setitem(settings.TASKS, name, tiny)  # type: ignore[arg-type]
    return heard


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["protocol", *arguments])
    return command.main()


def test_it_leaves_results_a_table_and_curves(
    asked: list[SettingChoices],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    given = ("--task", "fever", "--folds", "2", "--seed", "5", "--output", str(output), "--json")
    assert call(monkeypatch, *given) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (rows[0]["editor"], rows[0]["folds"], rows[0]["edits"]) == ("tpatcher", 2, 2)
    assert (asked[0].seed, asked[0].model, asked[0].start) == (5, None, None)
    written = json.loads((output / "table.json").read_text(encoding="utf-8"))
    assert {"probes": "train", "asked": 4, "right": 1.0} in written["initial"]
    assert len(list(output.glob("runs/*.json"))) == 2
    assert (output / "protocol-fever-bert.svg").exists()


def test_a_model_to_begin_with_is_handed_on(
    asked: list[SettingChoices], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("--task", "zsre", "--architecture", "t5", "--output", str(tmp_path / "out"))
    assert call(monkeypatch, *given, "--start", "somewhere") == 0
    assert (asked[0].architecture, asked[0].start) == ("t5", Path("somewhere"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--task", "fever", "--architecture", "t5"), "fever has bert, not t5"),
        (("--task", "counterfact", "--start", "x"), "give --model, not --start"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(
    asked: list[SettingChoices],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    assert call(monkeypatch, *arguments, "--output", str(tmp_path / "out")) == 1
    assert said in capsys.readouterr().err
    assert asked == []
