"""kill -9 between a patch, its journal entry and the vector index: the index heals itself.

A step writes a patch, commits its revision, and saves an index of the contents of all patches, as a
memory does. After a kill at any point, an index that is taken up names exactly the revisions that
the journal names; otherwise it is made anew, and is then taken up.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.faults import processes, workload
from benchmarks.faults.findings import Finding
from benchmarks.faults.processes import Say
from benchmarks.faults.workload import copied
from store import Store
from store.check import verify
from store.vectors import Stamp, VectorIndex

STEPS = 3
ENCODER = "e0"


def at_every_call(finding: Finding, every: int = 1) -> None:
    """Kill some steps at each of their system calls in turn, or at every n-th."""
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        template, path = Path(folder) / "template", Path(folder) / "store"
        workload.make(template)
        assert not processes.run(partial(_go_on, template, 1)).problems
        calls = processes.calls_in(partial(_go_on, copied(template, path), STEPS))
        points = [(call, n + 1) for call, count in sorted(calls.items()) for n in range(count)]
        for call, when in points[::every]:
            copied(template, path)
            fault = f"inject={call}:signal=KILL:when={when}"
            heard = processes.run_traced(
                partial(_go_on, path, STEPS), ["-e", f"trace={call}", "-e", fault]
            )
            missed += heard.signal is None
            if heard.signal is not None:
                looked = processes.run(partial(_look, path))
                finding.count(fault, processes.said_problems(looked))
    finding.note = f"{missed} more did not fire" if missed else ""


def _go_on(path: Path, steps: int, say: Say) -> None:
    with Store.open(path, writable=True) as store:
        index = _taken_up(store) or _made(store)
        for number in range(store.length, steps + 1):
            written = store.write_ahead(workload.tensors_of(number), {"number": number})
            revision = store.commit(workload.draft_of(store, number, written=written))
            index.add([revision.seq], _vector(store, revision.seq))
            index.save(_file(store), _stamp(store))


def _look(path: Path, say: Say) -> None:
    """Say the faults of the index that is taken up, or of one that is made anew."""
    problems = []
    with Store.open(path, writable=True) as store:
        found = _taken_up(store)
        if found is None:
            _made(store).save(_file(store), _stamp(store))
            found = _taken_up(store)
            problems += ["one that was made anew is not taken up"] if found is None else []
        for seq in range(1, store.length) if found is not None else ():
            if seq not in found or found.search(_vector(store, seq), 1).ids.item() != seq:
                problems.append(f"it does not find @{seq}")
        problems += [str(problem) for problem in verify(store) if not problem.harmless]
    say(problems=problems)


def _taken_up(store: Store) -> VectorIndex | None:
    count = store.length - 1
    return VectorIndex.load(_file(store), _stamp(store), workload.ROWS, count)


def _made(store: Store) -> VectorIndex:
    made = VectorIndex(workload.ROWS)
    for seq in range(1, store.length):
        made.add([seq], _vector(store, seq))
    return made


def _vector(store: Store, seq: int) -> Tensor:
    """Return [1, d], the vector for a revision's patch."""
    found = store.tensors(f"@{seq}")
    assert found is not None
    generator = torch.Generator().manual_seed(int(found[0]["bias"][0]))
    return normalize(torch.randn(1, workload.ROWS, generator=generator), dim=1)


def _file(store: Store) -> Path:
    path = store.cache / "memory" / "vectors.faiss"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _stamp(store: Store) -> Stamp:
    return Stamp(store.head.seq, store.head.id, ENCODER)
