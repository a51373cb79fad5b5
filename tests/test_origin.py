"""What is shipped: its dependencies are declared, and packages of the same names do no harm."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import cedit_origin

ROOT = Path(__file__).parents[1]
SHIPPED = ("cedit", "cli", "continual", "store")
SERVER = {"fastapi", "markupsafe", "prometheus_client", "starlette", "uvicorn"}
OPTIONAL = {"PIL", "faiss", "matplotlib", "peft", "ray", *SERVER}
"""Of extras: an import that fails says which."""


def imported(file: Path) -> Iterator[str]:
    """The top-level packages that a file imports."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_every_distribution_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = _names(project["dependencies"])
    assert {name.replace("_", "-") for name in SERVER} <= _names(extras["serve"])
    files = [ROOT / "cedit_origin.py"]
    files += [file for name in SHIPPED for file in (ROOT / name).rglob("*.py")]
    names = {name for file in files for name in imported(file)}
    names -= {*SHIPPED, *OPTIONAL, "cedit_origin", *sys.stdlib_module_names}
    assert {"torch", "tokenizers", "numpy"} <= names
    owners = packages_distributions()
    undeclared = {
        name
        for name in names
        if not {owner.lower().replace("_", "-") for owner in owners[name]} & declared
    }
    assert undeclared == set()


def _names(requirements: Iterable[str]) -> set[str]:
    """The distributions of some requirements, without their versions."""
    return {r.partition(">")[0].lower().replace("_", "-") for r in requirements}


# -- other packages of the same names


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder of installed packages with a `store` and a `cli` of another distribution."""
    for name in ("store", "cli"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('foreign code ran')\n")
    info = tmp_path / "shopkit-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shopkit\nVersion: 2.1\n")
    (info / "RECORD").write_text("store/__init__.py,,\ncli/__init__.py,,\n")
    return tmp_path


def python(code: str, *path: Path, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_import_beside_a_foreign_package_names_its_file_its_owner_and_the_remedy(
    foreign: Path,
) -> None:
    ran = python("import cedit", foreign, ROOT)
    assert ran.returncode == 1
    message = ran.stderr.splitlines()[-1]
    assert message.startswith("cedit_origin.ForeignPackage: `import store` finds")
    for part in (foreign / "store" / "__init__.py", "shopkit 2.1", ROOT / "store", "environment"):
        assert str(part) in message


def test_a_foreign_package_that_was_imported_before_is_seen(tmp_path: Path) -> None:
    (tmp_path / "store.py").write_text("")
    ran = python("import store, cedit", tmp_path, ROOT)
    assert f"finds {tmp_path / 'store.py'}, which no other owns" in ran.stderr


def test_the_command_runs_on_its_own_packages_whatever_is_found_first(foreign: Path) -> None:
    code = "import sys; sys.argv[1:] = ['settings']; import cedit_origin; cedit_origin.main()"
    ran = python(code, foreign, ROOT)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "[run]" in ran.stdout


def test_a_package_that_another_distribution_has_overwritten_is_told(
    foreign: Path, tmp_path: Path
) -> None:
    for name in (*SHIPPED, "cedit_origin.py"):
        if (ROOT / name).is_dir():
            there = tmp_path / name / "__init__.py"
            there.parent.mkdir(exist_ok=True)
            if not there.exists():  # the foreign ones came later
                shutil.copy(ROOT / name / "__init__.py", there)
        else:
            shutil.copy(ROOT / name, tmp_path)
    for code in ("import cedit_origin; cedit_origin.main()", "import cedit"):
        ran = python(code, tmp_path)
        assert ran.returncode == 1
        for part in (tmp_path / "store" / "__init__.py", "shopkit 2.1", "--force-reinstall"):
            assert str(part) in ran.stderr


def test_each_package_has_the_mark() -> None:
    for name in cedit_origin.NAMES:
        lines = (ROOT / name / "__init__.py").read_text("utf-8").splitlines()
        assert lines.count(cedit_origin.MARK) == 1
