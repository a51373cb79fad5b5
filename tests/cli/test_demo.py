"""The demonstration, on a tiny model in the atlas's place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from continual import embedded
from tests.cli.conftest import Cedit, request, write_lines


@pytest.fixture
def atlas(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny atlas: model, probes, and corrections, of which the first six are of mistakes."""
    mistakes = write_lines(tmp_path / "mistakes.jsonl", [request(n) for n in range(6)])
    corrections = write_lines(tmp_path / "corrections.jsonl", [request(n) for n in range(6, 9)])
    probes = write_lines(tmp_path / "probes.jsonl", [{"prompt": "a", "answer": "b"}])
    tiny = replace(
        embedded.ATLAS,
        directory=model,
        task={"name": "causal"},
        probes={"train": probes, "test": probes},
        corrections=corrections,
        mistakes=mistakes,
    )
    monkeypatch.setattr(embedded, "ATLAS", tiny)
    monkeypatch.setitem(embedded.MODELS, tiny.name, tiny)


def test_the_demonstration_corrects_compares_and_goes_back(cedit: Cedit, atlas: None) -> None:
    ran = cedit("demo", "--count", 5)
    assert ran.code == 0
    assert "5 read: 5 applied" in ran.out
    assert "the same, bit for bit" in ran.out
    assert ran.out.count("The capital of country") == 3
    assert "cedit init" in ran.out


def test_a_demonstration_that_is_kept_can_be_looked_at(
    cedit: Cedit, atlas: None, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    ran = cedit("demo", "--count", 4, "--keep", kept, "--json")
    assert ran.code == 0
    assert [r["type"] for r in ran.records].count("step") == 4
    assert ran.last["type"] == "rollback"
    assert ran.last["restored"] is True
    examples = [r for r in ran.records if r["type"] == "example"]
    assert len(examples) == 6
    assert all(e["before"] != e["after"] for e in examples[::2])
    assert cedit("log", "--all", "--store", kept, "--json").records[0]["operation"] == "rollback"


def test_behind_the_mistakes_come_corrections_that_are_said_to_be_not_so(
    cedit: Cedit, atlas: None
) -> None:
    ran = cedit("demo", "--count", 100)
    assert ran.out.startswith("6 corrections of wrong answers")
    assert "3 corrections more, which say what is not so" in ran.out
    assert "6 read: 6 applied" in ran.out
    assert "3 read: 3 applied" in ran.out


def test_a_demonstration_fits_eighty_columns(cedit: Cedit, atlas: None) -> None:
    lines = cedit("demo", "--count", 3).out.splitlines()
    is_shrunk = [line.startswith(("prompt ", "The capital of", "Country ")) for line in lines]
    assert sum(is_shrunk) == 7  # a table, which shrinks on a terminal
    widths = [len(line) for line, shrinks in zip(lines, is_shrunk, strict=True) if not shrinks]
    assert max(widths) <= 80
