"""The examples run as a reader runs them, and show what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SHOWN = {
    "correct": (
        "outcome: applied by tpatcher",
        "after: Sri Jayawardenepura Kotte",
        "in other words: Sri Jayawardenepura Kotte",
        "a neighbour: Lima",
        "opened again: Sri Jayawardenepura Kotte",
    ),
    "go_back": (
        "The capital of Peru is → Oslo",
        "the same model: True",
        "Forward again: 3 in force",
        "Without the correction of Peru",
    ),
    "own_editor": ("applied by nudge", "after: Belarusian", "rolled back: German"),
}


def printed(script: Path, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_does_what_it_says(name: str, tmp_path: Path) -> None:
    out = printed(EXAMPLES / f"{name}.py", tmp_path)
    assert [text for text in SHOWN[name] if text not in out] == []
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_the_model_of_the_last_example_ends_where_its_history_says(tmp_path: Path) -> None:
    *_, end = printed(EXAMPLES / "go_back.py", tmp_path).partition("Without the correction")
    assert "The capital of Peru is → Lima" in end
    assert "Zimbabwe is the → Zimbabwe Gold" in end


def test_every_example_is_run_and_is_on_a_page() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SHOWN)
    page = (ROOT / "docs" / "tutorial" / "examples.md").read_text("utf-8")
    assert [name for name in SHOWN if f"../../examples/{name}.py" not in page] == []
