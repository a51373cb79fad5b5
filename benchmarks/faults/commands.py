"""The command `cedit` in a forked process, its output caught: no command may show a traceback."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import click

from benchmarks.faults import processes
from benchmarks.faults.processes import Say
from cli import main as cli
from continual.base import load_base
from continual.embedded import ATLAS

PATIENCE_S = 120.0
CODES = frozenset({0, 1, 2, 3, 10, 11, 12, 20, 21, 130, 141})
CRASHES = ("Traceback (most recent call last)", "this is a bug")


@dataclass(frozen=True)
class Done:
    """The end of a command: exit code, output and signal."""

    code: int | None  # None: a signal ended it
    out: str
    err: str
    signal: int | None = None

    @property
    def problems(self) -> list[str]:
        """The faults that no command may have: a crash, a hang, a silent failure, a strange
        code."""
        found = [self.err[-600:] for crash in CRASHES if crash in self.out + self.err][:1]
        if self.code not in CODES:
            found.append(f"it ended with code {self.code}, signal {self.signal}")
        if self.code and self.code not in (3, 20) and not self.err.strip():
            found.append(f"it failed with code {self.code} and said nothing")
        return found


@cache
def warm_up() -> None:
    """Import before the fork whatever all children need."""
    for name in cli.COMMANDS:
        cli.commands.get_command(click.Context(cli.commands), name)
    load_base(ATLAS.name, device="cpu", dtype="float32", overrides={})


@cache
def _home() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that lasts as long as this process."""
    return tempfile.TemporaryDirectory()


@cache
def new_store() -> Path:
    """Return a new store on the embedded model, made once in a process; to be copied."""
    path = Path(_home().name) / "store"
    made = run("init", str(path), "--no-watch")
    assert made.code == 0, made.err
    return path


def perform(arguments: Sequence[str], say: Say) -> None:
    """Run a command in this process, and say its exit code."""
    say(code=cli.run(arguments))


def run(*arguments: str, before: processes.ChildTask | None = None, stdin: bytes = b"") -> Done:
    """Run a command in a child, after the child has run the task `before`."""
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("in", "out", "err")]
        files[0].write_bytes(stdin)
        heard = processes.run(partial(_run, files, arguments, before), PATIENCE_S)
        out, err = (file.read_text(errors="replace") for file in files[1:])
    codes = [one["code"] for one in heard.said if "code" in one and "error" not in one]
    told = "".join(heard.problems)
    return Done(codes[0] if codes else None, out, err + told, heard.signal)


def _run(
    files: Sequence[Path], arguments: Sequence[str], before: processes.ChildTask | None, say: Say
) -> None:
    for number, file in enumerate(files):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(file, flags, 0o666), number)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, encoding="utf-8", errors="surrogateescape")
        for number, mode in enumerate(("r", "w", "w"))
    )
    try:
        if before is not None:
            before(say)
        perform(arguments, say)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
