"""`cedit bench`: it runs the project's own benchmarks, and says where they are if they are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.commands import bench
from tests.cli.conftest import ROOT, Cedit


def test_options_are_handed_on_and_the_exit_code_comes_back(
    cedit: Cedit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Any] = []

    def run(program: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        ran.append((program, options["env"]["PYTHONPATH"]))
        return subprocess.CompletedProcess(program, 3)

    monkeypatch.setattr(bench.subprocess, "run", run)
    out = str(tmp_path / "out")
    done = cedit("bench", "protocol", "--task", "fever", "--edits", "7", "--output", out, "--json")
    ((program, path),) = ran
    assert done.code == 3
    assert program[:3] == [sys.executable, "-m", "benchmarks.protocol"]
    assert program[3:] == ["--task", "fever", "--edits", "7", "--output", out, "--json"]
    assert path.startswith(str(ROOT))


def test_every_option_of_the_command_is_one_of_the_benchmark() -> None:
    from benchmarks.protocol.__main__ import parser

    known = {text for action in parser()._actions for text in action.option_strings}
    given = {text for option in bench.protocol.params for text in option.opts}
    assert given - {"--help", "-h"} <= known


def test_without_the_projects_folder_it_says_what_to_do(
    cedit: Cedit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site" / "cli" / "commands" / "bench.py"))
    monkeypatch.chdir(tmp_path)
    done = cedit("bench", "protocol", "--task", "fever", "--output", "out")
    assert done.code == 1
    assert "no benchmarks" in done.err
    assert "Get the project" in done.err
