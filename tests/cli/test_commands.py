"""What holds for every command: help with an example, and a start that is quick."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cli.main import COMMANDS, commands
from continual.choices import CHAINS, EDITORS
from tests.cli.conftest import ROOT, Cedit

HEAVY = ("torch", "transformers", "pydantic", "numpy", "lmdb", "rich")
PROGRAM = """
import sys
from cli.main import run
code = run(sys.argv[1:])
print(*(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


def imports_of(heavy: tuple[str, ...], *arguments: str) -> list[str]:
    """Which of these a command has imported when it is done."""
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(heavy=heavy), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return child.stderr.split()


@pytest.mark.parametrize("arguments", [("--help",), ("apply", "--help"), ("init", "--help")])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert imports_of(HEAVY, *arguments) == []


@pytest.mark.parametrize(
    "arguments", [("status",), ("log",), ("show",), ("diff", "base"), ("tag",)]
)
def test_looking_at_a_history_needs_no_torch(store: Path, arguments: tuple[str, ...]) -> None:
    assert imports_of(("torch", "transformers"), *arguments) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(cedit: Cedit, name: str) -> None:
    ran = cedit(name, "--help")
    assert ran.code == 0
    assert f"cedit {name}" in ran.out.partition("Example:")[2]
    assert "--store" in ran.out
    assert "--json" in ran.out


def test_every_command_stands_in_the_readme() -> None:
    rows = [
        line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line[:1] == "|"
    ]
    for name in COMMANDS:
        assert any(row.startswith((f"| `cedit {name}`", f"| `cedit {name} ")) for row in rows), name


def test_every_option_says_what_it_does() -> None:
    context = click.Context(commands)
    for name in COMMANDS:
        command = commands.get_command(context, name)
        assert command is not None
        options = [p for p in command.params if isinstance(p, click.Option)]
        assert all(option.help for option in options)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_printed(cedit: Cedit, shell: str) -> None:
    ran = cedit("completion", shell)
    assert ran.code == 0
    assert "_CEDIT_COMPLETE" in ran.out


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("cedit sta", "status"),
        ("cedit show ba", "base"),
        ("cedit log base..he", "base..head"),
        ("cedit apply --editor tpa", "tpatcher"),
        ("cedit apply --editor memit,tpa", "memit,tpatcher"),
        ("cedit init --task seq", "seq2seq"),
    ],
)
def test_a_shell_completes_commands_revisions_and_choices(
    store: Path, line: str, wanted: str
) -> None:
    assert completed(line) == [wanted]


def test_a_shell_is_offered_every_editor_and_chain_and_nothing_else() -> None:
    assert completed("cedit apply --editor ") == [*EDITORS, *CHAINS]


def test_help_has_a_line_for_every_editor_and_chain(cedit: Cedit) -> None:
    lines = cedit("apply", "--help").out.partition("Editors (default: tpatcher,serac):")[2]
    names = [line.split()[0] for line in lines.splitlines() if re.match("  [a-z]", line)]
    assert names == [*EDITORS, *CHAINS]


def test_a_task_that_there_is_none_of_is_a_usage_error(cedit: Cedit, tmp_path: Path) -> None:
    ran = cedit("init", tmp_path / "store", "--task", "casual")
    assert ran.code == 2
    assert "'casual' is not one of causal, seq2seq, classification" in ran.err


def completed(line: str) -> list[str]:
    """What a shell is offered at the end of a line, by a process that imports nothing heavy."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(heavy=HEAVY[:4])],
        env={**os.environ, **words, "_CEDIT_COMPLETE": "bash_complete", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stderr.split() == []
    return [offer.removeprefix("plain,") for offer in child.stdout.split()]


def test_no_source_has_a_control_character() -> None:
    folders = ("cli", "continual", "store", "benchmarks", "tests")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert [p for p in sources if re.search(rb"[^\n\x20-\x7e\x80-\xff]", p.read_bytes())] == []
