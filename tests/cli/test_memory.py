"""The memory on the command line: which edit answered, and a model trained to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from continual.model_files import directory_fingerprint
from tests.cli.conftest import Cedit, write_lines
from tests.tiny_language import CAPITALS, ask, capital
from tests.tiny_memories import WordScope, about


@pytest.fixture
def remembering(
    cedit: Cedit,
    scope: WordScope,
    reading_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A store with one edit in memory."""
    folder = tmp_path / "remembering"
    assert cedit("init", folder, "--model", reading_model).code == 0
    monkeypatch.setenv("CEDIT_STORE", str(folder))
    stream = write_lines(tmp_path / "edits.jsonl", [about(20, CAPITALS[0])])
    assert cedit("apply", stream, "--editor", "serac").code == 0
    return folder


def test_ask_says_which_edit_answered_and_its_score(cedit: Cedit, remembering: Path) -> None:
    ran = cedit("ask", ask(20, 1), "--json")
    memory = ran.last["memory"]
    assert ran.last["answer"].startswith(CAPITALS[0])
    assert memory["prompt"] == ask(20) and memory["target"] == CAPITALS[0]
    assert memory["method"] == "serac" and 0.85 <= memory["score"] < 1
    assert memory["request"] == cedit("show", "--json").last["outcomes"][0]["id"]
    told = cedit("ask", ask(20, 1))
    assert told.out.startswith(CAPITALS[0]) and "from memory" not in told.out
    assert f"from memory: {ask(20)} → {CAPITALS[0]} (serac, request" in told.err


def test_ask_says_nothing_of_memory_where_the_model_answers(
    cedit: Cedit, remembering: Path
) -> None:
    assert cedit("ask", ask(3), "--json").last["memory"] is None
    told = cedit("ask", ask(3))
    assert told.out.startswith(capital(3)) and told.err == ""
    assert cedit("ask", ask(20), "--at", "base", "--json").last["memory"] is None


def test_a_changed_encoder_is_refused_with_the_code_of_integrity(
    cedit: Cedit, remembering: Path, scope: WordScope
) -> None:
    scope.fingerprint = "another"
    ran = cedit("ask", ask(20))
    assert ran.code == 20 and "cedit reembed" in ran.err
    done = cedit("reembed", "--json")
    assert done.code == 0 and done.last["records"] == 1 and done.last["scope"] == "another"
    assert done.last["ER_incl"] == 1.0
    assert cedit("ask", ask(20), "--json").last["memory"]["target"] == CAPITALS[0]
    assert "nothing to embed" in cedit("reembed").err


def test_an_unknown_setting_of_the_memory_is_named(cedit: Cedit, remembering: Path) -> None:
    config = remembering / "cedit.toml"
    config.write_text(config.read_text() + "\n[memory]\nencodr = 'x'\n")
    ran = cedit("ask", ask(20))
    assert ran.code == 1 and "encodr" in ran.err


def test_a_trained_model_is_used_by_the_lines_that_its_training_ends_with(
    cedit: Cedit, remembering: Path, tmp_path: Path
) -> None:
    requests = write_lines(tmp_path / "requests.jsonl", [about(c) for c in range(12)])
    out = tmp_path / "counterfactual"
    trained = cedit("train", "serac", requests, "--out", out, "--epochs", "1")
    assert trained.code == 0
    config = remembering / "cedit.toml"
    config.write_text(config.read_text() + trained.out[trained.out.index("[memory]") :])
    assert cedit("ask", ask(20), "--json").last["memory"]["method"] == "serac"
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    refused = cedit("ask", ask(20))
    assert refused.code == 1 and "put the right one back" in refused.err


def test_the_lines_for_a_trained_model_are_there_for_programs_too(
    cedit: Cedit, remembering: Path, tmp_path: Path
) -> None:
    requests = write_lines(tmp_path / "requests.jsonl", [about(c) for c in range(12)])
    out = tmp_path / "counterfactual"
    made = cedit("train", "serac", requests, "--out", out, "--epochs", "1", "--json").last
    assert made == {
        "type": "model",
        "counterfactual": str(out),
        "counterfactual_fingerprint": directory_fingerprint(out),
    }
