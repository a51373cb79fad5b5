"""Memory that runs out: the error says so, acknowledged steps are kept, and the end is the same."""

from __future__ import annotations

import json
import resource
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from benchmarks.faults import commands
from benchmarks.faults.findings import Finding
from benchmarks.faults.kills import lineage_of, unlike
from benchmarks.faults.processes import Say
from benchmarks.faults.workload import copied
from continual.embedded import ATLAS

PAGE_BYTES = resource.getpagesize()
MIB = 2**20


@dataclass(frozen=True)
class LimitedRun:
    """A stream to apply, and the room that it gets each time, in MiB."""

    editor: str
    batch: int
    corrections: int
    rooms: Sequence[int]


LONG = (
    LimitedRun("tpatcher", 1, 4, range(60, 300, 40)),
    LimitedRun("memit", 20, 40, range(200, 900, 100)),
    LimitedRun("ft-last", 1, 3, range(260, 600, 60)),
    LimitedRun("serac", 1, 3, range(200, 560, 80)),
)
SHORT = (LimitedRun("ft-last", 1, 2, (300,)),)


def of_apply(finding: Finding, runs: Sequence[LimitedRun]) -> None:
    """Run `cedit apply` in an address space that hardly grows, then again with room.

    It must end as a run that always had room.
    """
    short = 0
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            stream = root / "stream.jsonl"
            with ATLAS.corrections.open(encoding="utf-8") as lines:
                stream.write_text("".join(islice(lines, run.corrections)), encoding="utf-8")
            wanted = lineage_of(_applied(run, stream, root / "whole"))
            for room in run.rooms:
                store = copied(commands.new_store(), root / "short")
                done = commands.run(*_command(run, stream, store), before=partial(_leave, room))
                short += done.code != 0
                problems = [*_problems(done), *unlike(store, wanted, is_whole=done.code == 0)]
                acknowledged = sum("revision" in json.loads(line) for line in _lines(done.out))
                if acknowledged >= len(lineage_of(store)):
                    problems.append(f"{acknowledged} steps were said to be made")
                again = commands.run(*_command(run, stream, store))
                problems += again.problems
                if lineage_of(store) != wanted:
                    problems.append("with room it ended otherwise")
                finding.count(f"{run.editor} with {room} MiB", problems)
    finding.note = f"it was too little in {short} of them"
    if not short:
        finding.count("all of them", ["none had too little: nothing was tried"])


def _command(run: LimitedRun, stream: Path, store: Path) -> tuple[str, ...]:
    size = ("--batch-size", str(run.batch))
    return ("apply", str(stream), "--store", str(store), "--editor", run.editor, *size, "--json")


def _applied(run: LimitedRun, stream: Path, path: Path) -> Path:
    done = commands.run(*_command(run, stream, copied(commands.new_store(), path)))
    assert done.code in (0, 3), done.err
    return path


def _leave(room: int, say: Say) -> None:
    """Let this process take `room` MiB more from here on."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    size = pages * PAGE_BYTES + room * MIB
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _problems(done: commands.Done) -> list[str]:
    if done.code in (0, 3):
        return done.problems
    silent = [] if "memory" in done.err else [f"it does not speak of memory: {done.err}"]
    return done.problems + silent


def _lines(text: str) -> list[str]:
    """Return the lines that were written to their end."""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def find(is_short: bool) -> Iterator[Finding]:
    """Yield the finding of the table's one row."""
    applied = Finding("`cedit apply` without memory (RLIMIT_AS)")
    of_apply(applied, SHORT if is_short else LONG)
    yield applied
