"""Many processes at one store: readers under load, rival writers, a dead one, a forked one."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks.faults import processes, workload
from benchmarks.faults.findings import Finding
from benchmarks.faults.kills import scratch
from benchmarks.faults.processes import Heard, Say
from store import Store, StoreError
from store.check import verify
from store.errors import StoreLocked

READERS = 10
RIVALS = 4
PATIENCE_S = 300.0


def of_readers(finding: Finding, steps: int) -> None:
    """Run one writer, and ten readers that look at the newest and at random revisions."""
    acts = workload.plan(steps, ("step", "bare"))
    with scratch() as folder:
        path = folder / "store"
        workload.make(path)
        children = [processes.fork(partial(_read_on, path, steps, n)) for n in range(READERS)]
        children.append(processes.fork(partial(workload.run_plan, path, acts)))
        for child in children:
            child.go()
        *readers, writer = processes.finish_all(children, PATIENCE_S)
        for number, reader in enumerate(readers):
            problems = reader.problems + _strays(reader)
            for one in (one for one in reader.said if "wrong" in one):
                finding.count(f"reader {number}", one["wrong"])
            if problems:
                finding.count(f"reader {number}", problems)
        finding.count("the writer", writer.problems + _strays(writer))
        finding.count("afterwards", workload.faults_of(path, acts, steps, goes_on=False))


def _read_on(path: Path, steps: int, seed: int, say: Say) -> None:
    draw, ids = random.Random(seed), {}
    while True:
        with Store.open(path) as store:
            for _ in range(20):
                head = store.head
                say(wrong=_faults_of_view(store, head.seq, draw, ids))
                if head.seq == steps:
                    return
                time.sleep(draw.uniform(0.0, 0.005))


def _faults_of_view(store: Store, last: int, draw: random.Random, ids: dict[int, str]) -> list[str]:
    """Return the faults of the newest revision and of a random one before it, as they are read."""
    problems = []
    for seq in {last, draw.randint(0, last)}:
        revision = store.revision(f"@{seq}")
        if ids.setdefault(seq, revision.id) != revision.id:
            problems.append(f"@{seq} is another revision than before")
        if seq == 0:
            continue
        number = revision.body["number"]
        found = store.tensors(revision)
        if number != seq - 1 or (found is not None) != (number % 2 == 0):
            problems.append(f"@{seq} holds act {number}")
        if found is not None and not torch.equal(
            found[0]["keys"], workload.tensors_of(number)["keys"]
        ):
            problems.append(f"the patch of @{seq} differs")
        if (store.ledger(seq) or {}).get("number") != number:
            problems.append(f"@{seq} is there without its ledger")
    return problems


def _strays(heard: Heard) -> list[str]:
    return [] if heard.error is None else [f"it ended with {heard.error}"]


def of_rivals(finding: Finding, steps: int) -> None:
    """Run some writers at once: one writes, the others are told who does, and try again."""
    with scratch() as folder:
        path = folder / "store"
        workload.make(path)
        children = [processes.fork(partial(_write_when_free, path, steps)) for _ in range(RIVALS)]
        for child in children:
            child.go()
        pids = {child.pid for child in children}
        ends = processes.finish_all(children, PATIENCE_S)
        for heard in ends:
            done = sum("id" in one for one in heard.said)
            strangers = {one["holder"] for one in heard.said if "holder" in one} - pids - {None}
            problems = heard.problems + _strays(heard)
            problems += [f"{done} steps of {steps}"] if done != steps else []
            problems += [f"told that {strangers} hold the lock"] if strangers else []
            finding.count("a writer", problems)
        made = [one["id"] for heard in ends for one in heard.said if "id" in one]
        with Store.open(path) as store:
            there = [revision.id for revision in store.revisions(1)]
            missing = [] if sorted(made) == sorted(there) else ["not every step is there once"]
            finding.count("afterwards", missing + [str(problem) for problem in verify(store)])
        waited = sum("holder" in one for heard in ends for one in heard.said)
        finding.note = f"{len(made)} steps; told {waited} times who writes"


def _write_when_free(path: Path, steps: int, say: Say) -> None:
    done = 0
    while done < steps:
        try:
            with Store.open(path, writable=True) as store:
                for _ in range(min(5, steps - done)):
                    say(id=workload.perform(store, workload.Act("bare", store.length)))
                    done += 1
        except StoreLocked as error:
            say(holder=error.pid)
            time.sleep(0.002)


def of_dead_writers(finding: Finding, count: int) -> None:
    """Kill a writer and a reader inside their transactions; the next process must go on."""
    acts = workload.plan(2 * count, ("step", "bare"))
    with scratch() as folder:
        path = folder / "store"
        workload.make(path)
        for number in range(count):
            done = 2 * number
            for task in (_die_reading, _die_writing):
                heard = processes.run(partial(task, path))
                died = [] if heard.signal == signal.SIGKILL else [f"it did not die: {heard}"]
                finding.count(
                    f"after {done} acts", died + workload.faults_of(path, acts, done, False)
                )
            heard = processes.run(partial(workload.run_plan, path, acts[done : done + 2]))
            finding.count("going on", heard.problems + _strays(heard))


def _die_writing(path: Path, say: Say) -> None:
    store = Store.open(path, writable=True)
    with store.journal._begin(write=True) as transaction:
        for name, table in store.journal._tables.items():
            transaction.put(b"half", name.encode() * 400, db=table)
        os.kill(os.getpid(), signal.SIGKILL)


def _die_reading(path: Path, say: Say) -> None:
    store = Store.open(path)
    with store.journal.snapshot():
        assert store.length > 0
        os.kill(os.getpid(), signal.SIGKILL)


def of_forks(finding: Finding) -> None:
    """Fork a process while it writes: the child is refused by name, the parent goes on."""
    for is_writable in (True, False):
        for how in ("use", "open", "close", "exit"):
            with scratch() as folder:
                path = folder / "store"
                workload.make(path)
                heard = processes.run(partial(_fork_within, path, is_writable, how))
                said = [one["child"] for one in heard.said if "child" in one]
                wrong = [] if said and all(said) else [f"the child: {said}"]
                finding.count(
                    f"{how}, {'writing' if is_writable else 'reading'}",
                    heard.problems + _strays(heard) + wrong,
                )


def _fork_within(path: Path, is_writable: bool, how: str, say: Say) -> None:
    with Store.open(path, writable=is_writable) as store:
        pid = os.fork()
        if not pid:
            say(child=_child_is_right(store, path, how))
            os._exit(0)
        os.waitpid(pid, 0)
        if is_writable:
            workload.perform(store, workload.Act("step", 0))
        assert store.head.seq == int(is_writable)


def _child_is_right(store: Store, path: Path, how: str) -> bool:
    """Tell whether a forked child is refused as it must be: its parent's store is not its own."""
    if how == "exit":
        return True
    if how == "close":
        store.close()
        try:  # the parent's lock is still held
            Store.open(path, writable=True).close()
        except StoreLocked:
            return store.writable
        return not store.writable
    try:
        if how == "use":
            return store.head is None
        Store.open(path).close()
    except StoreError:
        return True
    return False


def find(is_short: bool) -> Iterator[Finding]:
    """Yield a finding for each row of the table."""
    readers = Finding("one writer, ten readers")
    of_readers(readers, 40 if is_short else 1500)
    yield readers
    rivals = Finding("four writers at once")
    of_rivals(rivals, 10 if is_short else 200)
    yield rivals
    dead = Finding("a writer or reader killed in a transaction")
    of_dead_writers(dead, 3 if is_short else 40)
    yield dead
    forks = Finding("fork with the store open")
    of_forks(forks)
    yield forks
