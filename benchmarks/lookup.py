"""Measures the look-up beside T-Patcher on the atlas: the same corrections, one by one, in one run.

    python -m benchmarks.lookup [--edits 300] [--skip 0] [--editors lookup,tpatcher]
                                [--set margin=0.5 ...] [--json OUT]

Each editor makes the edits in a store of its own, with all earlier edits measured again after each.
`--skip` leaves out the first corrections: settings are chosen on others than those that are
measured. `--set` changes settings of the look-up. The seconds of an edit are the processor's, as a
median: they hold on a machine that is shared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.capacity import requests_of_atlas
from benchmarks.tables import TextColumn
from continual.new_store import NewStore, init
from continual.step.pipeline import Step

MARKS = (100, 300, 1000)
RATES = ("SR", "GR", "ER", "TrainR", "TestR", "Locality", "Watch", "Neighbours", "Continuation")
COLUMNS = (
    TextColumn("editor", "editor"),
    TextColumn("edits", "edits", ",d"),
    *(TextColumn(name, name, ".4f") for name in RATES),
    TextColumn("a step, CPU ms", "step_ms", ".0f"),
    TextColumn("of it re-check, ms", "recheck_ms", ".0f"),
    TextColumn("patch, bytes", "patch_bytes", ",.0f"),
)


def runs(editor: str, table: Mapping[str, Any], edits: int, skip: int) -> Iterator[dict[str, Any]]:
    """Make the edits by one editor, and yield a row of the table at each mark and at the end."""
    requests = requests_of_atlas()[skip : skip + edits]
    with (
        tempfile.TemporaryDirectory() as folder,
        init(Path(folder) / "store", NewStore()) as session,
    ):
        settings = session.settings(chain=(editor,), editors={editor: dict(table)})
        made: list[tuple[Step, float]] = []
        began = time.process_time()
        for step in session.apply_requests(requests, settings):
            made.append((step, time.process_time() - began))
            began = time.process_time()
            if len(made) in (*MARKS, len(requests)):
                yield _row(editor, made)


def _row(editor: str, made: Sequence[tuple[Step, float]]) -> dict[str, Any]:
    last, _ = made[-1]
    assert last.measured is not None
    return {
        "editor": editor,
        "edits": len(made),
        **last.measured.rates.to_json(),
        "step_ms": 1e3 * statistics.median(seconds for _, seconds in made),
        "recheck_ms": 1e3 * statistics.median(step.recheck_s for step, _ in made),
        "patch_bytes": statistics.mean(step.patch_bytes for step, _ in made),
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--edits", type=int, default=300)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--editors", default="lookup,tpatcher")
    parser.add_argument("--set", dest="table", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    table = {key: _value(text) for key, _, text in (line.partition("=") for line in options.table)}
    rows: list[dict[str, Any]] = []
    for editor in options.editors.split(","):
        own = table if editor == "lookup" else {}
        for row in runs(editor, own, options.edits, options.skip):
            rows.append(row)
            tables.note(json.dumps(row))
            tables.write_json(options.json, "lookup", {"settings": table, "rows": rows})
    tables.show("The look-up beside T-Patcher on the atlas", COLUMNS, rows)


def _value(text: str) -> Any:
    """Read a setting's value; a text that is no JSON stands for itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    main()
