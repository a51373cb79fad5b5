"""Every class of the installed transformers that a task can load, tiny and random.

    python -m benchmarks.architectures FOLDER [--short] [--only TASK/TYPE,…] [--seconds 60]
                                       [--again OUTCOME,…] [--json OUT] [--report]

Each class is made small, and put through: `init`, two corrections by T-Patcher, their answers by
plain forward passes, by `generate` and by `ask` against the ledger's claim, the store opened again,
and a rollback compared bit for bit. It runs in a process of its own with a time limit, and has a
line in FOLDER/results.jsonl: a sweep that was stopped goes on where it was. `--again` takes classes
with these outcomes once more. The last table has the editors that take each class. Exit code 1
where anything is wrong or a bug.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import transformers

from benchmarks import tables
from benchmarks.architectures import stages
from benchmarks.architectures.models import SHORT, TASKS, ModelClass, kinds, quiet
from benchmarks.tables import TextColumn
from continual.choices import EDITORS

GROUPS = (
    ("tpatcher",),
    ("ft-last", "ft-all", "ft-last-kl", "ft-all-kl"),
    ("serac", "ike"),
    ("memit", "rome", "emmet", "alphaedit", "grace"),
    ("kn",),
    ("ft-l",),
)
"""Editors that take the same models."""
NEED_NO_FFN = frozenset((*GROUPS[0], *GROUPS[1], *GROUPS[2]))
NEURONS = {stages.FFN: "at the last FFN", stages.BLOCK: "behind the last block"}
RESULTS = "results.jsonl"
TIMEOUT = "timeout"
OUTCOMES = (
    *(stages.WORKS, stages.REFUSED, stages.FAILED, stages.WRONG, stages.BUG),
    *(TIMEOUT, stages.UNBUILT),
)
NOT_ALLOWED = (stages.WRONG, stages.BUG)
COUNTS = (TextColumn("task", "task"), *(TextColumn(name, name, "d") for name in OUTCOMES))
FAMILIES = (
    TextColumn("class", "key"),
    TextColumn("neurons stand", "neurons"),
    *(TextColumn(", ".join(editors), editors[0]) for editors in GROUPS),
)
CLASSES = (
    TextColumn("class", "key"),
    TextColumn("outcome", "outcome"),
    TextColumn("s", "seconds", ".1f"),
    TextColumn("said, or found", "said"),
)


def sweep(chosen: Iterable[ModelClass], folder: Path, seconds: float, again: set[str]) -> None:
    """Test these classes, without the ones that have a result already unless its outcome is in
    `again`. Appends a line to the folder's results for each."""
    folder.mkdir(parents=True, exist_ok=True)
    known = results(folder)
    for kind in chosen:
        if kind.key not in known or known[kind.key]["outcome"] in again:
            record = {"key": kind.key, "class": kind.name, **limited(kind, seconds)}
            record["transformers"] = transformers.__version__
            with (folder / RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{record['outcome']:8} {kind.key}  {record['said'][:150]}", flush=True)


def limited(kind: ModelClass, seconds: float) -> dict[str, Any]:
    """Return the record of a class, made in a process that is killed after `seconds`. It is a fork,
    so that modules are imported once for all classes."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        worker = context.Process(target=_work, args=(kind, Path(folder), theirs))
        worker.start()
        theirs.close()
        record = {"outcome": TIMEOUT, "said": f"not done in {seconds:g} s"}
        try:
            if ours.poll(seconds):
                record = ours.recv()
        except EOFError:
            record = {"outcome": stages.BUG, "said": "the process died"}
        worker.kill()
        worker.join()
    return {**record, "seconds": time.perf_counter() - began}


def _work(kind: ModelClass, folder: Path, pipe: Any) -> None:
    sys.stdin = None  # type: ignore[assignment]  # nothing may ask
    pipe.send(stages.put_through(kind, folder))


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the latest record of each class, by its key."""
    file = folder / RESULTS
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {record["key"]: record for record in map(json.loads, lines)}


def report(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Print the classes and the number of classes with each outcome; return these counts."""
    rows = [{**record, "said": str(record["said"])[:160]} for record in records.values()]
    tables.show("Classes", CLASSES, rows)
    counts = []
    for task in TASKS:
        found = Counter(r["outcome"] for key, r in records.items() if key.startswith(f"{task}/"))
        counts.append({"task": task, **{name: found[name] for name in OUTCOMES}})
    tables.show("Outcomes", COUNTS, counts)
    return counts


def families(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return which editors take each class that works: those that edit models of its task, but for
    editors of FFN matrices where the model has none in each block that add to the residual sum."""
    rows = []
    for key, record in records.items():
        if place := record.get("place"):
            is_at_ffn, task = place == stages.FFN, record["task"]
            takes = {
                editors[0]: "yes"
                if EDITORS[editors[0]].edits(task) and (is_at_ffn or editors[0] in NEED_NO_FFN)
                else "no"
                for editors in GROUPS
            }
            rows.append({"key": key, "neurons": NEURONS[place], **takes})
    return rows


def main() -> int:
    """Run the sweep or its report as the module describes; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--again", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--report", action="store_true")
    told = parser.parse_args()
    quiet()
    only = set(filter(None, told.only.split(",")))
    chosen = [
        kind
        for kind in kinds()
        if (not told.short or (kind.task, kind.model_type) in SHORT)
        and (not only or kind.key in only)
    ]
    if not told.report:
        sweep(chosen, told.folder, told.seconds, set(told.again.split(",")))
    found = results(told.folder)
    found = {kind.key: found[kind.key] for kind in chosen if kind.key in found}
    counts = report(found)
    tables.show("Which editors", FAMILIES, families(found))
    if told.json:
        told.json.write_text(json.dumps({"counts": counts, "classes": list(found.values())}))
    return int(any(record["outcome"] in NOT_ALLOWED for record in found.values()))


if __name__ == "__main__":
    sys.exit(main())
