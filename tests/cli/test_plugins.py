"""Other packages add editors, readers and tasks: docs/plugins.md is built, installed and used, and
a package that is broken takes nothing along."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Ran, write_lines

BROKEN = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "cedit-broken"
version = "1.0"

[tool.setuptools]
packages = ["broken"]

[project.entry-points."cedit.editors"]
tpatcher = "broken:FINE"
auto = "broken:FINE"
gone = "broken.nowhere:FINE"
number = "broken:NUMBER"
renamed = "broken:FINE"
late = "broken:LATE"
hollow = "broken:HOLLOW"

[project.entry-points."cedit.readers"]
plain = "broken:NUMBER"
lost = "broken.nowhere:FINE"

[project.entry-points."cedit.tasks"]
causal = "broken:NUMBER"
sung = "broken.nowhere:FINE"
""",
    "broken/__init__.py": """
from continual.registry import EditorEntry

NUMBER = 7
FINE = EditorEntry("fine", "broken.editor:Fine", "an editor")
LATE = EditorEntry("late", "broken.late:Late", "an editor whose module cannot be imported")
HOLLOW = EditorEntry("hollow", "broken.hollow", "an editor that is none")
""",
    "broken/late.py": "import a_package_that_nobody_has\n",
    "broken/hollow.py": "name = 'hollow'\n",
}
REASONS = {
    "gone": r"ModuleNotFoundError: No module named 'broken\.nowhere'",
    "number": r"broken:NUMBER is 7, and not an EditorEntry",
    "renamed": r"broken:FINE says that its name is fine",
    "late": r"ModuleNotFoundError: No module named 'a_package_that_nobody_has'",
    "hollow": r"broken\.hollow has no edit, objection",
}


def documented() -> dict[str, str]:
    """The files of the package in docs/plugins.md, by their paths."""
    text = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    return dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", text, re.M | re.S))


def installed(folder: Path, files: Mapping[str, str]) -> Path:
    """A folder of installed packages with one that pip has built from these files."""
    source, site = folder / "source", folder / "site"
    for name, text in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    local = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", *local, "--target", site, source],
        check=True,
    )
    return site


def python(site: Path, *arguments: object, **variables: str) -> Ran:
    """Run Python with these packages installed beside cedit."""
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(site)]), "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, **paths, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return Ran(child.returncode, child.stdout, child.stderr)


def cedit(site: Path, *arguments: object, **variables: str) -> Ran:
    """Run a command with these packages installed beside cedit."""
    return python(site, "-m", "cli.main", *arguments, **variables)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("example"), documented())


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("broken"), BROKEN)


def test_the_documented_package_reads_and_edits(example: Path, model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    told = ("--store", store, "--json")
    asked = {"the port of Norway": "Oslo", "where the Pope lives": "Rome"}
    records = [{"question": about, "right_answer": city} for about, city in asked.items()]
    stream = write_lines(tmp_path / "stream.jsonl", records)
    made = cedit(example, "init", "--model", model, "--task", "shouting", "--no-watch", *told)
    assert (made.code, made.last["task"]) == (0, "shouting")
    with (store / "cedit.toml").open("a") as file:
        file.write("\n[editor.wide]\nmargin = 0.3\n")
    ran = cedit(example, "apply", stream, "--editor", "wide", *told)
    assert (ran.code, ran.last["applied"], ran.last["SR"]) == (0, 2, 1.0)
    assert [r["editor"] for r in ran.records if r["type"] == "step"] == ["wide", "wide"]
    answer = cedit(example, "ask", "WHERE the pope lives", *told)
    assert answer.last["answer"].startswith("Rome")
    alone = cedit(tmp_path, "ask", "anything", *told)
    assert alone.code == 1
    assert re.fullmatch("cedit: Unknown task 'shouting': .* install the package .*\n", alone.err)


def test_names_of_other_packages_are_offered_and_shown(example: Path) -> None:
    program = "from continual.choices import *; print(*EDITORS, *READERS, *TASKS)"
    listed = python(example, "-c", program)
    assert {"wide", "questions", "shouting", "memit", "plain", "causal"} <= {*listed.out.split()}
    shown = cedit(example, "apply", "--help")
    assert re.search(r"^  wide +as tpatcher, with wider gates$", shown.out, re.M)


def test_cedits_own_fields_are_asked_last(example: Path) -> None:
    program = "from continual.readers import formats; print(*(f.NAME for f in formats()))"
    assert python(example, "-c", program).out.split()[-3:] == ["rome", "questions", "plain"]


@pytest.mark.parametrize("name", REASONS)
def test_a_broken_editor_that_is_asked_for_is_named_with_a_remedy(broken: Path, name: str) -> None:
    program = f"""
from continual.choices import EDITORS
from continual.errors import PluginError
try:
    EDITORS[{name!r}].load()
except PluginError as error:
    print(error)
"""
    ran = python(broken, "-W", "ignore", "-c", program)
    assert re.fullmatch(
        rf"The editor {name} of the package cedit-broken cannot be used: {REASONS[name]}\. Update "
        r"the package, or remove it: pip uninstall cedit-broken\n",
        ran.out,
    )


def test_a_broken_package_breaks_no_command(broken: Path, store: Path, stream: Path) -> None:
    ran = cedit(broken, "apply", stream, "--json")
    assert (ran.code, ran.last["applied"]) == (0, 3)
    said = [line for line in ran.err.splitlines() if "cedit-broken" in line]
    assert len(said) == len(ran.err.splitlines()) == 5
    taken = r"cedit: warning: The (\w+ \w+) of the package .* cannot be used: the name is taken\."
    left_out = {match[1] for line in said if (match := re.match(taken, line))}
    assert left_out == {"editor tpatcher", "editor auto", "reader plain", "task causal"}
    assert any("The reader lost of the package cedit-broken" in line for line in said)


def test_a_broken_editor_ends_its_command(broken: Path, store: Path, stream: Path) -> None:
    ran = cedit(broken, "apply", stream, "--editor", "late")
    assert ran.code == 1
    assert "Traceback" not in ran.err
    said = [line for line in ran.err.splitlines() if "The editor late" in line]
    assert len(said) == 1
    assert said[0].startswith("cedit: The editor late of the package cedit-broken cannot be used")


def test_help_and_completion_go_on_beside_a_broken_package(broken: Path) -> None:
    shown = cedit(broken, "apply", "--help")
    assert shown.code == 0
    assert re.search(r"^  memit +writes to", shown.out, re.M)
    assert re.search(r"^  gone +The editor gone of the package cedit-broken", shown.out, re.M)
    line = {"COMP_WORDS": "cedit apply --editor tp", "COMP_CWORD": "3"}
    offered = cedit(broken, **line, _CEDIT_COMPLETE="bash_complete")
    assert (offered.out, offered.err) == ("plain,tpatcher\n", "")
