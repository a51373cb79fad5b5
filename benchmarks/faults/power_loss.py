"""Power loss: whole runs are recorded, and the possible disks at any moment of them are opened.

A run is a process (or a killed one and the one that went on after it) under strace. Its writes,
syncs and renames give images of the disk in which anything not yet synced is lost or torn. A store
must open on each, hold all that was acknowledged by then, and go on. The controls leave out the
syncs: there, some images must lose something.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import lmdb

from benchmarks.faults import processes, upkeep, workload
from benchmarks.faults.disk import Disk, Image, Tree
from benchmarks.faults.findings import Finding
from benchmarks.faults.processes import Say
from benchmarks.faults.recording import OPTIONS, Event, read_log
from benchmarks.faults.upkeep import FOLDER, Upkeep
from benchmarks.faults.workload import Act
from store import Store, StoreError, config

FAST = Path("/dev/shm")  # images are many and short-lived
CHUNK = 100  # images that one process looks at
SMALL_MAP_BYTES = 72 << 10
KILLS = (
    "mkdir:signal=KILL:when=1",
    "write:signal=KILL:when=3",
    "rename:signal=KILL:when=1",
    "fsync:signal=KILL:when=1",
    "fsync:signal=KILL:when=2",
    "fsync:signal=KILL:when=3",
    "fsync:signal=KILL:when=4",
    "fsync:signal=KILL:when=5",
    "fdatasync:signal=KILL:when=1",
    "pwrite64:signal=KILL:when=2",
    "pwrite64:signal=KILL:when=6",
)
Said = list[dict[str, Any]]
INIT_KILLS = tuple(f"{call}:signal=KILL:when={n}" for call in ("mkdir", "fsync") for n in (2, 3, 4))


@dataclass(frozen=True)
class DiskRecording:
    """A run: the disk before it, its file system calls, and the check of a disk that it leaves."""

    name: str
    base: Tree
    events: list[Event]
    look: Callable[[Path, Said], list[str]]  # finds faults of a disk, given the acknowledgements
    root: Path

    def images(self, draw: random.Random, count: int) -> Iterator[Image]:
        """Yield disks that a power loss may have left."""
        return Disk(self.root, self.base, self.events).images(draw, count)


# -- runs


def record(
    name: str,
    look: Callable[[Path, Said], list[str]],
    runs: Sequence[tuple[processes.ChildTask, Sequence[str]]],
    root: Path,
) -> DiskRecording:
    """Run tasks one after the other under strace, each perhaps killed, as one recording."""
    base = _tree_of(root)
    logs = [processes.run_traced(task, [*OPTIONS, *injected]) for task, injected in runs]
    for heard, (_, injected) in zip(logs, runs, strict=True):
        if heard.problems or heard.error or (heard.signal is None) == bool(injected):
            raise AssertionError(f"{name}: {heard.problems} {heard.error} {injected}")
    events = read_log("\n".join(heard.log.rstrip() for heard in logs), root)
    return DiskRecording(name, base, events, look, root)


def _made(root: Path) -> Path:
    workload.make(root / FOLDER)
    return root / FOLDER


def _run(path: Path, acts: Sequence[Act], say: Say) -> None:
    workload.run_plan(path, acts, say)


def _run_in_small_map(path: Path, acts: Sequence[Act], say: Say) -> None:
    with Store(path, writable=True, map_size_bytes=SMALL_MAP_BYTES) as store:
        for act in acts:
            say(done=act.number, id=workload.perform(store, act))


def _go_on(path: Path, acts: Sequence[Act], say: Say) -> None:
    """Find out how far a killed run came, and do the acts after that."""
    with Store.open(path, writable=True) as store:
        at = next(
            at
            for at in range(len(acts) + 1)
            if not workload.differences(store, workload.expected_after(acts[:at]))
        )
        for act in acts[at:]:
            say(done=act.number, id=workload.perform(store, act))


def _init(path: Path, say: Say) -> None:
    workload.make(path)
    say(made=True)


def steps(root: Path, length: int) -> DiskRecording:
    """Record a store that is made, and used."""
    acts = workload.plan(length)
    task = partial(_run, _made(root), acts)
    return record("steps", partial(_look_at_run, acts), [(task, ())], root)


def growth(root: Path, length: int) -> DiskRecording:
    """Record a store whose map grows."""
    acts = workload.plan(length, ("bare", "step"))
    task = partial(_run_in_small_map, _made(root), acts)
    return record("a growing map", partial(_look_at_run, acts), [(task, ())], root)


def killed(root: Path, length: int, kill: str) -> DiskRecording:
    """Record a run that is killed, and the next one, which counts on the state it finds."""
    acts = workload.plan(length, ("dense", "quarantine", "cache", "step"))
    path = _made(root)
    runs = [
        (partial(_run, path, acts), ("-e", f"inject={kill}")),
        (partial(_go_on, path, acts), ()),
    ]
    return record(f"killed ({kill}), then", partial(_look_at_run, acts), runs, root)


def init(root: Path, kill: str | None = None) -> DiskRecording:
    """Record a store that is being made; perhaps for the second time, after a kill."""
    path = root / FOLDER
    task = partial(_init, path)
    runs: list[Any] = [(task, ())]
    if kill is not None:
        runs.insert(0, (task, ("-e", f"inject={kill}")))
    name = f"init{f' killed ({kill}), then init' if kill else ''}"
    return record(name, _look_at_new, runs, root)


def upkept(root: Path, one: Upkeep, leave_out: Callable[[], Any] = nullcontext) -> DiskRecording:
    """Record work on a whole store."""

    def task(say: Say) -> None:
        with leave_out():
            one.perform(root)
        say(kept=True)

    def look(folder: Path, said: Said) -> list[str]:
        return one.look(folder, bool(said))

    one.prepare(root)
    return record(one.name, look, [(task, ())], root)


# -- controls


@contextmanager
def _no_file_sync() -> Iterator[None]:
    with mock.patch("os.fsync", lambda descriptor: None):
        yield


@contextmanager
def _no_folder_sync() -> Iterator[None]:
    with mock.patch("store.durable._sync_folder", lambda path: None):
        yield


@contextmanager
def _no_journal_sync() -> Iterator[None]:
    real = lmdb.open
    with mock.patch("lmdb.open", lambda *rest, **more: real(*rest, **more, sync=False)):
        yield


def _without(leave_out: Callable[[], Any], path: Path, acts: Sequence[Act], say: Say) -> None:
    with leave_out():
        workload.run_plan(path, acts, say)


CONTROLS = {
    "patches without fsync": _no_file_sync,
    "folders without fsync": _no_folder_sync,
    "the journal with sync=False": _no_journal_sync,
}


def control(root: Path, length: int, name: str) -> DiskRecording:
    """Record a run that leaves some syncs out."""
    acts = workload.plan(length)
    task = partial(_without, CONTROLS[name], _made(root), acts)
    return record(name, partial(_look_at_run, acts), [(task, ())], root)


# -- the contents of images


def look_at(image: Image, recording: DiskRecording, folder: Path) -> list[str]:
    """Return the faults of a disk."""
    said = [json.loads(line) for line in image.said.splitlines() if line.endswith(b"}")]
    shutil.rmtree(folder, ignore_errors=True)
    image.write(folder)
    return recording.look(folder, said)


def _look_at_run(acts: Sequence[Act], folder: Path, said: Said) -> list[str]:
    done = [one["done"] for one in said if "done" in one]
    return workload.faults_of(folder / FOLDER, acts, 1 + max(done, default=-1))


def _look_at_new(folder: Path, said: Said) -> list[str]:
    path, is_made = folder / FOLDER, any("made" in one for one in said)
    acts = workload.plan(4)
    if not config.exists(path):
        if is_made:
            return ["it was acknowledged, and is gone"]
        try:
            workload.make(path)
        except StoreError as error:
            return [f"can't be made again: {error}"]
    return workload.faults_of(path, acts, 0)


def examine(recording: DiskRecording, count: int, seed: int, finding: Finding) -> None:
    """Look at images of a recording, in processes that a damaged file may end."""
    draw = random.Random(seed)
    images = recording.images(draw, count)
    with tempfile.TemporaryDirectory(dir=FAST if FAST.is_dir() else None) as folder:
        while chunk := list(islice(images, CHUNK)):
            _examine_chunk(recording, chunk, Path(folder), finding)


def _examine_chunk(
    recording: DiskRecording, chunk: Sequence[Image], folder: Path, finding: Finding
) -> None:
    def look(say: Say) -> None:
        for number, image in enumerate(chunk):
            say(at=number, problems=look_at(image, recording, folder / str(os.getpid())))

    heard = processes.run(look, patience_s=300)
    seen = [one for one in heard.said if "at" in one]
    for one in seen:
        case = f"{recording.name}, moment {chunk[one['at']].moment}"
        finding.count(case, one["problems"])
    if len(seen) < len(chunk):
        lost = chunk[len(seen)]
        finding.count(
            f"{recording.name}, moment {lost.moment}",
            [f"looking at it ends the process: signal {heard.signal}", *heard.problems],
        )
        _examine_chunk(recording, chunk[len(seen) + 1 :], folder, finding)


def _tree_of(root: Path) -> Tree:
    return {
        path.relative_to(root).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
    }


# -- the forms


def find(is_short: bool) -> Iterator[Finding]:
    """Yield a finding for each row of the table."""
    rows = {
        "power loss: images of whole runs": _runs(is_short),
        "power loss: after a kill and another run": _killed_runs(is_short),
        "power loss: while a store is made": _inits(is_short),
        "power loss: during repair, export, import, migrate": _upkeep(is_short),
    }
    why = processes.why_no_strace()
    for fault, recordings in rows.items():
        finding = Finding(fault, skipped=why)
        for number, (make, count) in enumerate(recordings if why is None else ()):
            with tempfile.TemporaryDirectory() as root:
                examine(make(Path(root)), count, number, finding)
        yield finding
    for name in CONTROLS:
        finding = Finding(f"control: {name}", control=True, skipped=why)
        if why is None:
            with tempfile.TemporaryDirectory() as root:
                examine(control(Path(root), 14, name), 60 if is_short else 600, 0, finding)
        yield finding
    finding = Finding("control: those four without fsync", control=True, skipped=why)
    for one in upkeep.ALL if why is None else ():
        with tempfile.TemporaryDirectory() as root:
            recording = upkept(Path(root), one, _no_file_sync)
            examine(recording, 30 if is_short else 150, 0, finding)
    yield finding


Planned = list[tuple[Callable[[Path], DiskRecording], int]]


def _runs(is_short: bool) -> Planned:
    if is_short:
        return [(partial(steps, length=14), 150), (partial(growth, length=16), 50)]
    return [(partial(steps, length=42), 6000), (partial(growth, length=40), 2000)]


def _killed_runs(is_short: bool) -> Planned:
    kills = KILLS[:4] if is_short else KILLS
    return [(partial(killed, length=8, kill=kill), 15 if is_short else 250) for kill in kills]


def _inits(is_short: bool) -> Planned:
    kills = INIT_KILLS[:2] if is_short else INIT_KILLS
    count = 25 if is_short else 250
    return [(init, count), *((partial(init, kill=kill), count) for kill in kills)]


def _upkeep(is_short: bool) -> Planned:
    return [(partial(upkept, one=one), 30 if is_short else 500) for one in upkeep.ALL]
