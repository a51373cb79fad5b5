"""Measures the cost of an edit: seconds, memory and bytes on disk, for every editor on one stream.

    python -m benchmarks.efficiency [--edits 100] [--editors tpatcher,memit,...] [--json OUT]

Each row is a process of its own that applies the same corrections of the atlas to a new store. The
seconds of an edit are those of a step (plan, edit, prove, commit) over its requests. The re-check
has a column of its own, and so has the first step, which loads or computes an editor's one-time
needs. Memory is the most that the process held while it edited, and the part of it on top of the
open store. On disk are the patches, and the growth of the store's folder without its caches and
snapshots, which are safe to delete. Each row is written to OUT as soon as it is measured; rows that
OUT already has are not measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import tables
from benchmarks.capacity import requests_of_atlas
from benchmarks.scores import drawn
from benchmarks.tables import TextColumn
from continual.choices import EDITORS
from continual.new_store import NewStore, init
from continual.session import Session
from continual.step.pipeline import Step
from continual.step.settings import Recheck
from continual.watch.config import UNWATCHED

BATCHES: Mapping[str, Sequence[int]] = {
    "memit": (50, 10, 1),
    "emmet": (10, 1),
    "alphaedit": (10, 1),
    "calinet": (50, 1),
}
"""Requests in a step, for editors that take many at once; one for all others."""
FOLLOWED = ("tpatcher", "serac", "ike")
"""Editors whose steps are followed by measuring only the changed probes. After a weight edit all
are measured, and that happens after every tenth edit."""
WEIGHTS_RECHECKED_EVERY = 10  # edits
NOT_AN_EDITS = ("cache", "snapshots")
BLOCK_BYTES = 512  # the unit of `st_blocks`

RATES = ("SR", "GR", "ER", "TrainR", "TestR")
COLUMNS = (
    TextColumn("editor", "editor"),
    TextColumn("batch", "batch_size", "d"),
    TextColumn("edits", "edits", "d"),
    *(TextColumn(name, name, ".3f") for name in RATES),
    TextColumn("first step, s", "first_s", ".3f"),
    TextColumn("an edit, s", "edit_s", ".4f"),
    TextColumn("re-check, s", "recheck_s", ".4f"),
    TextColumn("peak, MB", "peak_mb", ",.0f"),
    TextColumn("of it for edits, MB", "edits_mb", ",.0f"),
    TextColumn("patch, bytes an edit", "patch_bytes", ",.0f"),
    TextColumn("store, bytes an edit", "store_bytes", ",.0f"),
)


@dataclass(frozen=True)
class TableCase:
    """One row of the table."""

    editor: str
    batch_size: int
    edits: int

    @property
    def name(self) -> dict[str, Any]:
        """The entries that identify the case's row."""
        return {"editor": self.editor, "batch_size": self.batch_size, "asked": self.edits}

    @property
    def recheck(self) -> Recheck:
        """The schedule on which earlier edits are measured again."""
        if self.editor in FOLLOWED:
            return Recheck()
        return Recheck(every=max(1, WEIGHTS_RECHECKED_EVERY // self.batch_size))

    def measured(self) -> dict[str, Any]:
        """Measure the case in a process of its own, and return its row."""
        tables.note(f"{self.editor}, {self.batch_size} at a time")
        own = (self.editor, str(self.batch_size), str(self.edits), str(torch.get_num_threads()))
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.efficiency", "--case", *own],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return row

    def run(self) -> dict[str, Any]:
        """Measure the case in this process, and return its row."""
        requests = drawn(requests_of_atlas(), self.edits)
        with (
            tempfile.TemporaryDirectory() as folder,
            init(Path(folder) / "store", NewStore(watch=UNWATCHED)) as session,
        ):
            place = Path(folder) / "store"
            settings = session.settings(
                chain=(self.editor,), batch_size=self.batch_size, recheck=self.recheck
            )
            disk, memory = _bytes_on_disk(place), memory_mb("VmRSS")
            forget_peak()
            steps = list(session.apply_requests(requests, settings))
            peak = memory_mb("VmHWM")
            session.settle()
            applied = max(1, session.run_state.retention.applied)
            return {
                **self.name,
                "edits": session.run_state.retention.attempts.total,
                **_rates(session),
                **_seconds(steps),
                "peak_mb": peak,
                "edits_mb": max(0.0, peak - memory),  # the kernel counts pages a little late
                "patch_bytes": sum(step.patch_bytes for step in steps) / applied,
                "store_bytes": (_bytes_on_disk(place) - disk) / applied,
            }


def cases(editors: Sequence[str], edits: int) -> list[TableCase]:
    """Return every editor in each of its batch sizes."""
    return [TableCase(name, size, edits) for name in editors for size in BATCHES.get(name, (1,))]


def _known(path: Path | None) -> list[dict[str, Any]]:
    """Read the rows that a file already has."""
    if path is None or not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["editors"]
    return rows


def _row_of(case: TableCase, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((row for row in rows if case.name.items() <= row.items()), None)


def _rates(session: Session) -> dict[str, Any]:
    record = session.store.ledger(session.store.head.seq)
    assert record is not None
    return {name: record["rates"][name] for name in RATES}


def _seconds(steps: Sequence[Step]) -> dict[str, float]:
    """Return the first step's seconds, and the means of an edit and a re-check over the others."""
    others = steps[1:] or steps
    edits = sum(len(step.outcomes) for step in others)
    rechecks = [step.recheck_s for step in others if step.measured] or [steps[0].recheck_s]
    return {
        "first_s": steps[0].edit_s,
        "edit_s": sum(step.edit_s for step in others) / edits,
        "recheck_s": sum(rechecks) / len(rechecks),
    }


def _bytes_on_disk(folder: Path) -> int:
    """Return the bytes on disk of a store's files, without the ones that are safe to delete."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in files if path.relative_to(folder).parts[0] not in NOT_AN_EDITS]
    return sum(path.stat().st_blocks * BLOCK_BYTES for path in kept)


def memory_mb(name: str) -> float:
    """Return a memory field of /proc/self/status, by the kernel's name, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


def forget_peak() -> None:
    """Reset the kernel's count of the most memory that this process held."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--editors", default=",".join(EDITORS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        editor, batch_size, edits, threads = options.case
        torch.set_num_threads(int(threads))
        print(json.dumps(TableCase(editor, int(batch_size), int(edits)).run()))
        return
    torch.set_num_threads(options.threads)
    chosen = cases(options.editors.split(","), options.edits)
    rows = _known(options.json)
    for case in chosen:
        if _row_of(case, rows) is None:
            rows.append(case.measured())
            tables.write_json(options.json, "efficiency", {"editors": rows})
    rows = [row for case in chosen if (row := _row_of(case, rows)) is not None]
    tables.show(f"{options.edits} corrections of the atlas by every editor", COLUMNS, rows)


if __name__ == "__main__":
    main()
