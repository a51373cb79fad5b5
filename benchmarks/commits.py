"""Measures the cost of a commit beside a bare durable LMDB transaction of the same bytes.

    python -m benchmarks.commits [--steps N] [--folder DIR] [--json OUT]

Takes turns, so that all meet the same disk: a step without a patch; a step with a patch, which is
written ahead and waited for, and then committed; the same entries put into an LMDB file of their
own; and the same bytes written and synced to a file of their own. A commit ought to cost no more
than twice the bare transaction, beyond the time in which its patch reaches the disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import torch

from benchmarks import tables
from benchmarks.tables import TextColumn
from store import Draft, Store
from store.journal import LIB_VERSION, TABLES, Put, wrap

COLUMNS = (
    TextColumn("measure", "measure"),
    TextColumn("median, ms", "median_ms", ".3f"),
    TextColumn("p90, ms", "p90_ms", ".3f"),
)
ROWS, WIDTH = 4, 256  # of a patch of a few neurons
PLENTY_BYTES = 1 << 30
WARM_UP = 20  # turns that are not counted


class Bare:
    """A bare LMDB environment and a bare folder, to compare the store with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = lmdb.open(
            str(folder / "bare"),
            map_size=PLENTY_BYTES,
            max_dbs=len(TABLES),
            lib_version=LIB_VERSION,
        )
        self.tables = {name: self.environment.open_db(name.encode()) for name in TABLES}

    def put(self, changes: Sequence[Put]) -> None:
        """Put the same entries in one durable transaction."""
        with self.environment.begin(write=True) as transaction:
            for one in changes:
                assert one.payload is not None
                value = wrap(one.table, one.key, one.payload)
                transaction.put(one.key, value, db=self.tables[one.table])

    def write(self, number: int, data: bytes) -> None:
        """Write the same patch as a new file, and sync the file and its folder."""
        path = self.folder / f"patch-{number}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(descriptor, data)
        os.fsync(descriptor)
        os.close(descriptor)
        folder = os.open(self.folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def draft(store: Store, number: int, **more: Any) -> Draft:
    """Return a step like the pipeline's: a request, its place in the stream, the ledger's
    record."""
    record = {
        "prompt": f"The capital of country {number} is",
        "target_new": f"City {number % 97}",
        "subject": f"country {number}",
        "relation": "capital",
    }
    identity = f"{number:032x}"
    stream = {"news.jsonl": {"position": number, "rolling": f"{number:064x}"}}
    outcome = {"id": identity, "outcome": "applied", "editor": "tpatcher", "attempts": 1}
    return Draft(
        operation="edit",
        parent=store.head_id,
        fingerprint=f"{number:064x}",
        body={"editor": "tpatcher", "requests": [outcome], "streams": stream, "quarantined": []},
        requests={identity: record},
        subjects={identity: record["subject"]},
        streams=stream,
        ledger={"turned": {identity: True}, "rates": {"SR": 1.0, "GR": 0.9, "ER": 0.99}},
        **more,
    )


def measure(folder: Path, steps: int) -> list[dict[str, Any]]:
    """Measure `steps` steps of each kind, and return the rows of the table."""
    seconds: dict[str, list[float]] = {}
    bare = Bare(folder)
    with Store.init(folder / "store", {"model": {"path": "m"}}, {}, "f0") as store:
        written: list[Sequence[Put]] = []
        write = store.journal.write
        store.journal.write = lambda changes: (written.append(changes), write(changes))[1]
        for number in range(2 * (steps + WARM_UP)):
            name, turn = _turn(store, bare, number, written)
            for measure_, value in turn.items():
                seconds.setdefault(f"{measure_}{name}", []).append(value)
    times = {name: values[WARM_UP:] for name, values in seconds.items()}
    rows = [_row(name, values) for name, values in times.items()]
    return [*rows, *_ratios(times)]


def _turn(
    store: Store, bare: Bare, number: int, written: list[Sequence[Put]]
) -> tuple[str, dict[str, float]]:
    """Time one step, with or without a patch, and the same bytes without a store."""
    is_patched = number % 2 == 1
    times, more = {}, {}
    if is_patched:
        tensors = {"0.keys": torch.full((ROWS, WIDTH), float(number))}
        written_ahead = store.write_ahead(tensors, {"parts": []})
        times["patch written ahead"] = _timed(written_ahead.result)
        more = {"written": written_ahead}
    step = draft(store, number, **more)
    times["commit"] = _timed(lambda: store.commit(step))
    changes = written.pop()
    times["bare LMDB transaction"] = _timed(lambda: bare.put(changes))
    if is_patched:
        patch = store.head.patch
        assert patch is not None
        data = store.blobs.path(patch.sha256).read_bytes()
        times["bare file, fsync, folder fsync"] = _timed(lambda: bare.write(number, data))
    return (", with a patch" if is_patched else ", without a patch"), times


def _timed(use: Callable[[], object]) -> float:
    begun = time.perf_counter()
    use()
    return time.perf_counter() - begun


def _row(name: str, values: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(values)
    return {
        "measure": name,
        "median_ms": 1e3 * statistics.median(ordered),
        "p90_ms": 1e3 * ordered[int(0.9 * len(ordered))],
    }


def _ratios(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return how many bare transactions a commit costs, beyond the way of its patch to the disk."""
    median = {name: statistics.median(values) for name, values in times.items()}
    with_, without = (
        {name.removesuffix(kind): value for name, value in median.items() if name.endswith(kind)}
        for kind in (", with a patch", ", without a patch")
    )
    bare = with_["bare LMDB transaction"] + with_["bare file, fsync, folder fsync"]
    whole = with_["patch written ahead"] + with_["commit"]
    return [
        {
            "measure": "commit / bare transaction, without a patch",
            "ratio": without["commit"] / without["bare LMDB transaction"],
        },
        {
            "measure": "commit / bare transaction, behind a patch",
            "ratio": with_["commit"] / with_["bare LMDB transaction"],
        },
        {"measure": "patch and commit / bare file and transaction", "ratio": whole / bare},
    ]


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=500, help="of each kind")
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(Path(folder), options.steps)
    columns = (*COLUMNS, TextColumn("ratio", "ratio", ".2f"))
    tables.show("A commit beside a bare LMDB transaction of the same bytes", columns, rows)
    tables.write_json(options.json, "commits", {"steps": options.steps, "rows": rows})


if __name__ == "__main__":
    main()
