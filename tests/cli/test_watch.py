"""`cedit watch`, and what the watch set looks like on the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from continual.watch.config import WatchConfig
from tests.cli.conftest import Cedit, write_lines

pytestmark = pytest.mark.watched
ONE = {"prompt": "The capital of France is", "target_new": "Lima", "subject": "France"}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    lines = [{"text": f"Text number {n} is about nothing in particular."} for n in range(80)]
    return write_lines(tmp_path / "texts.jsonl", lines)


@pytest.fixture
def atlas_store(cedit: Cedit, tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    store = tmp_path / "store"
    made = cedit("init", store, "--text", texts)
    assert made.code == 0
    assert "80 general texts from texts.jsonl" in made.out
    monkeypatch.setenv("CEDIT_STORE", str(store))
    return store


def test_metrics_of_the_watch_set_stand_on_the_terminal(
    cedit: Cedit, atlas_store: Path, tmp_path: Path
) -> None:
    applied = cedit("apply", write_lines(tmp_path / "one.jsonl", [ONE]))
    assert applied.code == 0
    for command in (("status",), ("show",), ("diff", "base")):
        assert "Watch 1.000  Neighbours" in cedit(*command).out
    assert cedit("status", "--json").last["Watch"] == 1.0


def test_text_is_replaced_and_its_cost_is_told(
    cedit: Cedit, atlas_store: Path, texts: Path
) -> None:
    ran = cedit("watch", "--text", texts, "--json")
    assert ran.code == 0
    record = ran.last
    assert (record["type"], record["texts"], record["source"]) == ("watch", 80, "texts.jsonl")
    assert record["memory_rows"] > 300
    assert record["bytes"] > 0
    assert "watch" in cedit("log").out


def test_little_memory_is_a_warning(cedit: Cedit, tmp_path: Path) -> None:
    few = write_lines(tmp_path / "few.jsonl", [{"text": "One text is not enough."}])
    none = write_lines(tmp_path / "none.jsonl", [])
    made = cedit("init", tmp_path / "s", "--text", few, "--train-probes", none)
    assert "rows tell an edit what to leave alone" in made.err


def test_a_new_store_counts_watch_max_for_each_edit_and_an_older_one_for_a_step(
    store: Path,
) -> None:
    assert "per_edit = true" in (store / "cedit.toml").read_text(encoding="utf-8")
    assert not WatchConfig.of({}).per_edit
