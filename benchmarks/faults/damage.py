"""Flipped bits, cut-off files, pages gone or swapped: `verify` names it, or nothing was changed.

Each file of a store is damaged in one place after the other. If `verify` has nothing to name, all
that the store says must be as before: the damage lies where nothing is kept.
"""

from __future__ import annotations

import hashlib
import random
import signal
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.faults import processes, workload
from benchmarks.faults.failing_disk import full_store
from benchmarks.faults.findings import Finding
from benchmarks.faults.kills import scratch
from benchmarks.faults.processes import Say
from store import Store, StoreError
from store.check import verify
from store.journal import TABLES

PAGE = 4096
HEADER = 96  # bytes at the start of a page that describe its layout
META = 176  # bytes at the start of the file's first two pages that are in use
CHUNK = 250
SNAPSHOT = "segments/one"
PATIENCE_S = 20  # for one look


@dataclass(frozen=True)
class Damage:
    """A damage to a file: `data` is put at `offset`, or all from there on is cut off."""

    kind: str
    offset: int
    data: bytes | None

    def applied(self, sound: bytes) -> bytes:
        """Return the file's content with the damage."""
        if self.data is None:
            return sound[: self.offset]
        return sound[: self.offset] + self.data + sound[self.offset + len(self.data) :]


def flips(sound: bytes, places: Iterable[int], bits: Iterable[int]) -> Iterator[Damage]:
    """Yield a flip for each of these bits in each of these bytes."""
    bits = list(bits)
    for place in places:
        for bit in bits:
            yield Damage("flip", place, bytes([sound[place] ^ 1 << bit]))


def random_flips(sound: bytes, count: int, draw: random.Random) -> Iterator[Damage]:
    """Yield `count` flips of bits anywhere."""
    for _ in range(count):
        yield from flips(sound, [draw.randrange(len(sound))], [draw.randrange(8)])


def cuts(sound: bytes, count: int, draw: random.Random) -> Iterator[Damage]:
    """Yield cuts of a file: at the start, before the last byte, and in between."""
    ends = {0, 1, len(sound) - 1, *(draw.randrange(len(sound)) for _ in range(count))}
    for end in sorted(ends):
        yield Damage("cut", end, None)


def pages(sound: bytes, every: int = 1) -> Iterator[Damage]:
    """Yield whole pages lost, filled, or in the place of others."""
    starts = range(0, len(sound), PAGE)[::every]
    for number, start in enumerate(starts):
        other = starts[(number + 1) % len(starts)]
        yield Damage("zeros", start, bytes(PAGE))
        yield Damage("ones", start, b"\xff" * PAGE)
        yield Damage("swap", start, sound[other : other + PAGE])


def of_journal(sound: bytes, is_short: bool, draw: random.Random) -> Iterator[Damage]:
    """Yield damage to the places of an LMDB file that matter most, and to many others."""
    metas = [*range(META), *range(PAGE, PAGE + META)]
    headers = [start + n for start in range(0, len(sound), PAGE) for n in range(HEADER)]
    if is_short:
        metas, headers = draw.sample(metas, 40), draw.sample(headers, 40)
    yield from flips(sound, metas, range(8) if not is_short else [3])
    yield from flips(sound, headers, [draw.randrange(8)])
    yield from random_flips(sound, 60 if is_short else 4000, draw)
    yield from cuts(sound, 10 if is_short else 300, draw)
    yield from pages(sound, 7 if is_short else 1)


def of_file(sound: bytes, is_short: bool, draw: random.Random) -> Iterator[Damage]:
    """Yield a flip in every byte of a small file, and cuts; in the full form some more flips."""
    places = draw.sample(range(len(sound)), min(40, len(sound))) if is_short else range(len(sound))
    for place in places:
        yield from flips(sound, [place], [draw.randrange(8)])
    yield from random_flips(sound, 0 if is_short else 200, draw)
    yield from cuts(sound, 5 if is_short else 60, draw)


# -- looking


def state_of(store: Store) -> dict[str, Any]:
    """Return all that a store says."""
    with store.journal.snapshot():
        tables = {table: list(store.journal.entries(table)) for table in TABLES}
    patches = {one.seq: _digest(store.tensors(one)) for one in store.revisions()}
    cached, snapshot = store.cached("statistics/block-0"), store.snapshots.get(SNAPSHOT)
    return {
        "settings": store.settings,
        "tables": tables,
        "patches": patches,
        "quarantine": list(store.quarantined()),
        "cached": None if cached is None else _digest((cached.tensors, cached.meta)),
        "snapshot": None if snapshot is None else _digest((snapshot.tensors, snapshot.meta)),
    }


def _digest(found: Any) -> str | None:
    if found is None:
        return None
    tensors, meta = found
    total = hashlib.sha256(repr(meta).encode())
    for name in sorted(tensors):
        total.update(f"{name}{tensors[name].dtype}{tuple(tensors[name].shape)}".encode())
        total.update(tensors[name].numpy().tobytes())
    return total.hexdigest()


def look_at(path: Path, truth: dict[str, Any]) -> str:
    """Return "named", "harmless", or the fault in how a damaged store is read."""
    try:
        with Store.open(path) as store:
            if verify(store):
                return "named"
            found = state_of(store)
    except StoreError:
        return "named"
    except Exception:
        return traceback.format_exc()
    differing = [name for name in truth if found[name] != truth[name]]
    return f"unnoticed: other {', '.join(differing)}" if differing else "harmless"


def examine(
    finding: Finding, path: Path, name: str, damages: Iterator[Damage], truth: dict[str, Any]
) -> None:
    """Do one damage after the other to a file, and look at the store."""
    file = path / name
    sound, outcomes = file.read_bytes(), dict.fromkeys(("named", "harmless", "deadly"), 0)
    while chunk := list(islice(damages, CHUNK)):
        while chunk:
            chunk = chunk[_examine_chunk(finding, file, chunk, (path, sound, truth), outcomes) :]
    file.write_bytes(sound)
    counts = ", ".join(f"{count} {how}" for how, count in outcomes.items() if count)
    finding.note = f"{finding.note}; {counts}".removeprefix("; ")


def _examine_chunk(
    finding: Finding,
    file: Path,
    chunk: Sequence[Damage],
    about: tuple[Path, bytes, dict[str, Any]],
    outcomes: dict[str, int],
) -> int:
    path, sound, truth = about

    def look(say: Say) -> None:
        for damage in chunk:
            signal.alarm(PATIENCE_S)
            file.write_bytes(damage.applied(sound))
            say(found=look_at(path, truth))

    heard = processes.run(look, patience_s=PATIENCE_S * 10)
    said = [one["found"] for one in heard.said if "found" in one]
    for damage, found in zip(chunk, said, strict=False):
        _count(finding, file, damage, found, outcomes)
    if len(said) == len(chunk):
        return len(chunk)
    # `verify` reads in a child for this reason, and says that the file ends its reader.
    is_named = heard.signal in (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT)
    found = "deadly" if is_named else f"signal {heard.signal} {heard.problems}"
    _count(finding, file, chunk[len(said)], found, outcomes)
    return len(said) + 1


def _count(
    finding: Finding, file: Path, damage: Damage, found: str, outcomes: dict[str, int]
) -> None:
    is_known = found in outcomes
    if is_known:
        outcomes[found] += 1
    case = f"{file.name}: {damage.kind} at {damage.offset}"
    finding.count(case, [] if is_known else [found])


def find(is_short: bool) -> Iterator[Finding]:
    """Yield a finding for each row of the table."""
    draw = random.Random(0)
    with scratch() as folder:
        path, _ = full_store(folder)
        with Store.open(path, writable=True) as store:
            store.snapshots.put(SNAPSHOT, workload.tensors_of(1), {"number": 1})
        with Store.open(path) as store:
            assert not verify(store)
            truth = state_of(store)
        journal = Finding("damage to the journal")
        name = "journal/data.mdb"
        damages = of_journal((path / name).read_bytes(), is_short, draw)
        examine(journal, path, name, damages, truth)
        yield journal
        for fault, pattern in (
            ("damage to patches", "patches/*/*"),
            ("damage to the cache", "cache/**/*.*"),
            ("damage to snapshots", "snapshots/**/*.*"),
            ("damage to cedit.toml", "cedit.toml"),
            ("damage to the quarantine", "quarantine.jsonl"),
        ):
            finding = Finding(fault)
            files = sorted(file for file in path.glob(pattern) if file.is_file())
            for file in files[: 1 if is_short and "patches" in pattern else 3]:
                name = file.relative_to(path).as_posix()
                damages = of_file(file.read_bytes(), is_short, draw)
                examine(finding, path, name, damages, truth)
            yield finding
