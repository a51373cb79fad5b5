"""A long run in one process: memory, open files and time per step stay as they were."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.faults import processes, workload
from benchmarks.faults.findings import Finding
from benchmarks.faults.processes import Heard, Say
from store import Store

PARTS = 10  # a run has ten parts, and these are compared
GROWTH_MAX_BYTES = 8 << 20  # of the process's own memory, from the second part to the last
SLOWDOWN_MAX = 2.0  # of the median step; looked at in long runs only


def run_long(path: Path, steps: int, say: Say) -> None:
    """Commit small steps; after each part of them, say the process's memory, files and step
    time."""
    with Store.open(path, writable=True) as store:
        for part in range(PARTS):
            seconds = []
            for number in range(part * steps // PARTS, (part + 1) * steps // PARTS):
                begun = time.perf_counter()
                workload.perform(store, workload.Act("step", number))
                seconds.append(time.perf_counter() - begun)
            say(
                bytes=_own_memory(),
                files=len(list(Path("/proc/self/fd").iterdir())),
                step_s=statistics.median(seconds),
            )
        say(length=store.length)


def _own_memory() -> int:
    """Return the bytes of memory that are the process's own; mapped journal pages are the
    system's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10


def judged(heard: Heard, steps: int, is_timed: bool) -> tuple[list[str], str]:
    """Return the faults of a long run, and a note of its memory, files and step times."""
    parts = [one for one in heard.said if "bytes" in one]
    if heard.problems or heard.error or len(parts) < PARTS:
        return [*heard.problems, f"it ended early: {heard.error}"], ""
    first, last = parts[1], parts[-1]  # the first part still loads modules
    problems = []
    if last["bytes"] > first["bytes"] + GROWTH_MAX_BYTES:
        problems.append(f"memory went from {first['bytes']} to {last['bytes']} bytes")
    if last["files"] > first["files"]:
        problems.append(f"open files went from {first['files']} to {last['files']}")
    if is_timed and last["step_s"] > SLOWDOWN_MAX * first["step_s"]:
        problems.append(f"a step went from {first['step_s']} to {last['step_s']} s")
    if heard.said[-1].get("length") != steps + 1:
        problems.append("not every step is there")
    grown = (last["bytes"] - first["bytes"]) / 1e6
    note = (
        f"{steps} steps; memory {grown:+.1f} MB, {last['files']} files open, "
        f"step {1e3 * first['step_s']:.2f} then {1e3 * last['step_s']:.2f} ms"
    )
    return problems, note


def find(is_short: bool) -> Iterator[Finding]:
    """Yield the finding of the table's one row."""
    steps = 300 if is_short else 20_000
    finding = Finding("a soak in one process")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        workload.make(path)
        heard = processes.run(partial(run_long, path, steps), patience_s=1800)
        problems, finding.note = judged(heard, steps, is_timed=not is_short)
        finding.count(f"{steps} steps", problems)
    yield finding
