"""The list of benchmarks in the package's docstring is that of its folder."""

from __future__ import annotations

import re
from pathlib import Path

import benchmarks

FOLDER = Path(benchmarks.__file__).parent


def commands() -> set[str]:
    """The names behind `python -m benchmarks.`: modules and packages that can be run."""
    modules = {path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text("utf-8")}
    return modules | {path.parent.name for path in FOLDER.glob("*/__main__.py")}


def test_every_benchmark_is_listed_once_and_nothing_else() -> None:
    listed = re.findall(r"^    python -m benchmarks\.(\w+) {2,}\S", benchmarks.__doc__ or "", re.M)
    assert sorted(listed) == sorted(commands())
