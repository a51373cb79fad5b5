"""Measures how long it takes to go back in a long history, and to open a very long one.

    python -m benchmarks.history [--revisions N] [--rollbacks N] [--entries N] [--segments N,N]
                                 [--json OUT]

Commits a history of small neuron patches on the atlas through the store, one request each. Then,
for each size of a segment (0: no snapshots), it opens the history once, which makes the snapshots,
and a session rolls back and forward to random revisions; every state must have the fingerprint on
record. Beside it, writes a journal of many revisions without patches in large transactions, and
opens that.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import store.store
from benchmarks import tables
from benchmarks.tables import TextColumn
from continual.new_store import NewStore, init
from continual.patches import pack
from continual.patches.neuron import NeuronPatch
from continual.session import Session, open_session
from continual.watch.config import UNWATCHED
from store import Draft, Revision, Store
from store.history import History
from store.journal import Put
from store.revisions import payload_of
from store.snapshots import PATCHES

COLUMNS = (
    TextColumn("measure", "measure"),
    TextColumn("count", "count", "d"),
    TextColumn("median, s", "median", ".4f"),
    TextColumn("highest, s", "highest", ".4f"),
)
CHUNK = 20_000  # entries in a transaction


def record(number: int) -> dict[str, Any]:
    """Return a request as the journal holds it."""
    return {
        "prompt": f"The capital of country {number} is",
        "target_new": f"City {number % 97}",
        "subject": f"country {number}",
        "relation": "capital",
    }


def outcome(number: int) -> dict[str, Any]:
    """Return the outcome of a request, as a revision's body holds it."""
    return {
        "id": identity(number),
        "outcome": "applied",
        "editor": "tpatcher",
        "attempt": 1,
        "neurons": 1,
    }


def identity(number: int) -> str:
    """Return a request's id."""
    return f"{number:032x}"


def body(number: int) -> dict[str, Any]:
    """Return a revision's body, as a step writes it."""
    settings = {"chain": ["tpatcher"], "batch_size": 1, "seed": 0, "force": False, "repair": False}
    return {
        "editor": "tpatcher",
        "settings": {**settings, "editors": {"tpatcher": {}}},
        "requests": [outcome(number)],
        "quarantined": [],
        "streams": {"corrections.jsonl": {"position": number, "rolling": identity(number)}},
    }


# -- a history with patches


def commit_patches(session: Session, count: int) -> None:
    """Commit small neuron patches, each as a revision of its own."""
    history, edited = session.store, session.edited
    width, block = edited.anatomy.width, edited.anatomy.last
    draw = torch.Generator().manual_seed(0)
    for number in range(count):
        keys = torch.randn(1, width, generator=draw) / width
        patch = NeuronPatch(block, keys, torch.full((1,), -9.0), keys, (identity(number),))
        edited.put([patch])
        tensors, meta = pack([patch])
        history.commit(
            Draft(
                "edit",
                history.head_id,
                edited.fingerprint,
                body(number),
                tensors=tensors,
                patch_meta=meta,
                requests={identity(number): record(number)},
                subjects={identity(number): f"country {number}"},
            )
        )
        if number % 1000 == 999:
            tables.note(f"{number + 1} revisions")


def rollbacks(path: Path, count: int, draw: random.Random) -> tuple[list[float], int]:
    """Roll back to random revisions; return the seconds of each and the number of wrong states."""
    seconds: list[float] = []
    wrong = 0
    with open_session(path) as session:
        revisions = session.store.lineage("head")
        for revision in draw.sample(revisions, count):
            started = time.perf_counter()
            session.rollback(revision.id)
            seconds.append(time.perf_counter() - started)
            wrong += session.edited.fingerprint != revision.fingerprint
        session.rollback(revisions[-1].id)
    return seconds, wrong


def opening(path: Path) -> float:
    """Return the seconds until a session stands at head."""
    started = time.perf_counter()
    with open_session(path):
        return time.perf_counter() - started


# -- a long journal


def write_entries(path: Path, count: int) -> int:
    """Write a journal of `count` revisions in large transactions; return the bytes of its file."""
    with Store.init(path, {"model": {"path": "none"}}, {}, "0" * 64) as opened:
        history = History(opened.journal)
        changes: list[Put] = []
        for change in entries(history, opened.base, count):
            changes.extend(change)
            if len(changes) >= CHUNK:
                opened.journal.write(changes)
                changes = []
        opened.journal.write(changes)
    return (path / "journal" / "data.mdb").stat().st_size


def entries(history: History, base: Revision, count: int) -> Iterator[list[Put]]:
    """Yield each revision's changes to the journal."""
    parent = base
    for number in range(1, count):
        draft = Draft(
            "edit",
            parent.id,
            identity(number) * 2,
            body(number),
            requests={identity(number): record(number)},
            subjects={identity(number): f"country {number}"},
        )
        payload = payload_of(draft, number, parent.id, None)
        parent = Revision.from_payload(payload)
        yield history.changes(draft, parent, payload)


def open_store(path: Path) -> float:
    """Return the seconds until the head of a store is known."""
    started = time.perf_counter()
    with Store.open(path) as opened:
        assert opened.head.seq == opened.length - 1
        return time.perf_counter() - started


# -- the table


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measure all rows."""
    rows = []
    if options.revisions:
        with init(folder / "patched", NewStore(watch=UNWATCHED)) as session:
            commit_patches(session, options.revisions)
        for size in options.segments:
            rows += measure_segments(folder / "patched", size, options)
    if options.entries:
        length = write_entries(folder / "long", options.entries)
        opened = [open_store(folder / "long") for _ in range(5)]
        rows.append(row("a journal opened, its head read", options.entries, opened))
        tables.note(f"{length / options.entries:.0f} bytes of journal per edit")
        rows[-1]["bytes_per_entry"] = length / options.entries
    return rows


def measure_segments(path: Path, size: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the rows for one size of a segment."""
    store.store.PATCHES = size or options.revisions + 1
    for file in sorted((path / "snapshots").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    first = opening(path)
    again = [opening(path) for _ in range(3)]
    seconds, wrong = rollbacks(path, options.rollbacks, random.Random(0))
    files = [file for file in (path / "snapshots").rglob("*") if file.is_file()]
    tables.note(f"segments of {size}: {sum(f.stat().st_size for f in files):,} bytes of snapshots")
    kind = f"segments of {size}" if size else "no snapshots"
    return [
        row(f"{kind}: opened first", options.revisions, [first]),
        row(f"{kind}: opened again", options.revisions, again),
        row(f"{kind}: rolled back or forward", options.revisions, seconds, wrong),
    ]


def row(name: str, count: int, seconds: list[float], wrong: int = 0) -> dict[str, Any]:
    """Return a row of the table."""
    median = statistics.median(seconds)
    return {
        "measure": name,
        "count": count,
        "median": median,
        "highest": max(seconds),
        "wrong": wrong,
    }


def numbers(text: str) -> tuple[int, ...]:
    """Parse `0,500` as numbers."""
    return tuple(int(part) for part in text.split(","))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--revisions", type=int, default=10_000)
    parser.add_argument("--rollbacks", type=int, default=10)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--segments", type=numbers, default=(PATCHES,), metavar="N[,N]")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    tables.show("A long history", COLUMNS, rows)
    tables.write_json(options.json, "history", {"rows": rows})
    sys.exit(int(any(row["wrong"] for row in rows)))


if __name__ == "__main__":
    main()
