"""The short form of a fault, as a test: every row sound, every control noticed.

It runs as people run it, in a process of its own: the faults fork their children, and a process in
which torch has started threads must not be forked.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def draw() -> random.Random:
    return random.Random(0)


@pytest.fixture
def short_form(tmp_path: Path) -> Callable[[str], None]:
    def run(fault: str) -> None:
        out = tmp_path / "found.json"
        command = [sys.executable, "-m", "benchmarks.faults", "--short", "--only", fault]
        ran = subprocess.run(
            [*command, "--json", str(out)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        rows = json.loads(out.read_text(encoding="utf-8"))["faults"]
        assert rows
        reasons = {row["skipped"] for row in rows}
        if None not in reasons:
            pytest.skip("; ".join(sorted(reasons)))

    return run
