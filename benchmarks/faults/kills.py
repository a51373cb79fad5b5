"""kill -9 at every system call of a run, at random times of a long one, and of `cedit apply`."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from benchmarks.faults import commands, index_kills, processes, workload
from benchmarks.faults.findings import Finding
from benchmarks.faults.processes import Say
from benchmarks.faults.workload import Act, copied
from continual.embedded import ATLAS
from store import Store

FAST = Path("/dev/shm")
PLANS = (
    ("step", "step"),
    ("inline", "bare"),
    ("dense", "step"),
    ("step", "quarantine", "rollback", "tag"),
    ("cache", "ledger", "cache", "step"),
    ("queue", "step", "queue"),
)
LONG = 4000  # acts of a run that is killed before it comes so far
PER_STORE = 8  # kills before a fresh store is taken


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder for stores that need no real disk."""
    with tempfile.TemporaryDirectory(dir=FAST if FAST.is_dir() else None) as folder:
        yield Path(folder)


def calls_of(template: Path, acts: Sequence[Act], folder: Path) -> Counter[str]:
    """Count each system call in a run: the most that one thread makes of it."""
    return processes.calls_in(partial(workload.run_plan, copied(template, folder), acts))


# -- at every system call


def at_every_call(finding: Finding, kinds: Sequence[Sequence[str]], every: int = 1) -> None:
    """Kill a run at each of its system calls in turn, or at every n-th."""
    missed = 0
    with scratch() as folder:
        workload.make(folder / "template")
        for names in kinds:
            acts = workload.plan(len(names), names)
            calls = calls_of(folder / "template", acts, folder / "store")
            points = [(call, n + 1) for call, count in sorted(calls.items()) for n in range(count)]
            for call, when in points[::every]:
                path = copied(folder / "template", folder / "store")
                missed += not _kill_at(finding, path, acts, call, when)
    finding.note = f"{missed} more did not fire" if missed else ""


def _kill_at(finding: Finding, path: Path, acts: Sequence[Act], call: str, when: int) -> bool:
    fault = f"inject={call}:signal=KILL:when={when}"
    heard = processes.run_traced(
        partial(workload.run_plan, path, acts), ["-e", f"trace={call}", "-e", fault]
    )
    if heard.signal is None:
        return False
    done = sum("done" in one for one in heard.said)
    found = processes.run(partial(_look, path, acts, done))
    finding.count(f"{fault} in {[act.kind for act in acts]}", processes.said_problems(found))
    return True


def _look(path: Path, acts: Sequence[Act], done: int, say: Say) -> None:
    say(problems=workload.faults_of(path, acts, done))


# -- at random times


def at_random_times(finding: Finding, count: int, seed: int = 0) -> None:
    """Kill long runs, each going on where the one before was killed."""
    draw = random.Random(seed)
    acts = workload.plan(LONG)
    with scratch() as folder:
        for number in range(count):
            if number % PER_STORE == 0:
                shutil.rmtree(folder / "store", ignore_errors=True)
                workload.make(folder / "store")
                at = 0
            at = _kill_sometime(finding, folder / "store", acts, at, draw)


def _kill_sometime(
    finding: Finding, path: Path, acts: Sequence[Act], at: int, draw: random.Random
) -> int:
    child = processes.fork(partial(workload.run_plan, path, acts[at:]))
    child.go()
    child.listen(draw.uniform(0.001, 0.08))
    child.kill()
    heard = child.finish()
    done = at + sum("done" in one for one in heard.said)
    with Store.open(path, writable=True) as store:
        found, stands = workload.standing(store, acts, done)
    found += workload.faults_of(path, acts, stands, goes_on=False)
    finding.count(f"after {done} acts", found + heard.problems)
    return stands


# -- of `cedit apply`


def of_apply(finding: Finding, kills: int, corrections: int, seed: int = 0) -> None:
    """Kill `cedit apply` at random times and give it again: it must end as a run left in peace."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        stream, root = Path(folder) / "stream.jsonl", Path(folder)
        with ATLAS.corrections.open(encoding="utf-8") as lines:
            stream.write_text("".join(islice(lines, corrections)), encoding="utf-8")
        whole = copied(commands.new_store(), root / "whole")
        done = commands.run("apply", str(stream), "--store", str(whole))
        assert done.code == 0, done.err
        wanted = lineage_of(whole)
        broken, killed = copied(commands.new_store(), root / "broken"), 0
        while killed < kills:
            if _kill_apply(stream, broken, draw):
                killed += 1
                finding.count(f"kill {killed}", unlike(broken, wanted, is_whole=False))
            else:
                finding.count(f"before kill {killed + 1}", unlike(broken, wanted, is_whole=True))
                broken = copied(commands.new_store(), root / "broken")
        commands.run("apply", str(stream), "--store", str(broken))
        finding.count("the end", unlike(broken, wanted, is_whole=True))


def _kill_apply(stream: Path, store: Path, draw: random.Random) -> bool:
    arguments = ("apply", str(stream), "--store", str(store), "--json")
    child = processes.fork(partial(commands.perform, arguments))
    child.go()
    child.listen(draw.uniform(0.05, 2.5))
    child.kill()
    return child.finish().signal is not None


def lineage_of(path: Path) -> list[tuple[str, str]]:
    """Return ids and fingerprints, from the beginning."""
    with Store.open(path) as store:
        return [(one.id, one.fingerprint) for one in store.lineage("head")]


def unlike(path: Path, wanted: Sequence[tuple[str, str]], is_whole: bool) -> list[str]:
    """Return the faults of a store whose lineage is to be `wanted`, or the beginning of it."""
    found = lineage_of(path)
    problems = [] if found == list(wanted[: len(found)]) else ["another lineage"]
    if is_whole and len(found) != len(wanted):
        problems.append(f"{len(found)} revisions of {len(wanted)}")
    verified = commands.run("verify", "--store", str(path), "--json")
    said = verified.out.splitlines()[-1:]
    if not said or not json.loads(said[0])["ok"]:
        problems.append(f"verify: {verified}")
    return problems


def find(is_short: bool) -> Iterator[Finding]:
    """Yield a finding for each row of the table."""
    why = processes.why_no_strace()
    calls = Finding("kill -9 at every system call of a step", skipped=why)
    if why is None:
        kinds = (PLANS[0], PLANS[-1]) if is_short else PLANS
        at_every_call(calls, kinds, every=8 if is_short else 1)
    yield calls
    between = Finding("kill -9 between patch, journal and vector index", skipped=why)
    if why is None:
        index_kills.at_every_call(between, every=8 if is_short else 1)
    yield between
    times = Finding("kill -9 at random times of a long run")
    at_random_times(times, 16 if is_short else 300)
    yield times
    applied = Finding("kill -9 of `cedit apply` at random times")
    of_apply(applied, 1 if is_short else 30, 3 if is_short else 40)
    yield applied
