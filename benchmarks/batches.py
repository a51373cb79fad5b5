"""Measures retention along 300 corrections of the atlas in batches of 10, for each editor.

    python -m benchmarks.batches [--corrections 300] [--batch-size 10]
                                 [--editors memit,emmet,alphaedit,rome] [--earlier JSON ...]
                                 [--plots DIR] [--json OUT]

Measures all earlier edits and both probe sets again after every fifth batch. The drift budget is
off, so that the table shows breakage. The table has the metrics along the stream, the seconds of a
batch and of its re-check, and a patch's bytes beside those of the dense matrices that it changes.
`--earlier` adds the results of other runs to the table and the plot; `--editors ""` runs none.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import plots, tables
from benchmarks.capacity import EDITORS, UNBOUNDED, requests_of_atlas
from benchmarks.scores import drawn
from benchmarks.tables import TextColumn
from continual.new_store import NewStore, init
from continual.requests import Request
from continual.session import Session
from continual.step.pipeline import Step
from continual.step.settings import Recheck
from continual.watch.config import UNWATCHED

MARKS = (50, 100, 200, 300)
MEASURED_EVERY = 5  # batches
FLOAT_BYTES = 4
SUMMARY_COLUMNS = (
    TextColumn("edits", "edits", ",d"),
    *(TextColumn(name, name, ".3f") for name in ("SR", "GR", "ER", "TrainR", "TestR", "Locality")),
    TextColumn("batch, s", "edit_s", ".2f"),
    TextColumn("re-check, s", "recheck_s", ".2f"),
    TextColumn("patch, bytes", "patch_bytes", ",d"),
    TextColumn("dense, bytes", "dense_bytes", ",d"),
)
COLUMNS = (TextColumn("editor", "editor"), *SUMMARY_COLUMNS)


def run(
    session: Session, requests: Sequence[Request], editor: str, batch_size: int
) -> list[dict[str, Any]]:
    """Apply the requests in batches; return a row for each batch that a re-check followed."""
    settings = session.settings(
        chain=(editor,),
        editors={editor: {"drift_max": UNBOUNDED}},
        batch_size=batch_size,
        recheck=Recheck(every=MEASURED_EVERY),
    )
    rows: list[dict[str, Any]] = []
    for step in session.apply_requests(requests, settings):
        if step.measured is None:
            continue
        rows.append({"editor": editor, **summary(session, step)})
        last = rows[-1]
        tables.note(f"{editor}: {last['edits']} edits, ER {last['ER']}, TestR {last['TestR']}")
    return rows


def summary(session: Session, step: Step) -> dict[str, Any]:
    """Return the row of one batch."""
    assert step.measured is not None
    anatomy = session.edited.anatomy
    blocks = step.revision.body.get("weight_blocks", ())
    return {
        "edits": session.run_state.retention.attempts.total,
        **step.measured.rates.to_json(),
        "edit_s": step.edit_s,
        "recheck_s": step.recheck_s,
        "patch_bytes": step.patch_bytes,
        "dense_bytes": len(blocks) * anatomy.ffn_width * anatomy.width * FLOAT_BYTES,
    }


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw ER, TrainR and TestR over the stream, with a line for each editor."""
    titles = {"ER": "ER: earlier edits", "TrainR": "TrainR", "TestR": "TestR: facts never edited"}
    plots.save(plots.panels(rows, "edits", titles, "edits"), folder, "batches")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corrections", type=int, default=MARKS[-1])
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--editors", default=",".join(EDITORS))
    parser.add_argument("--earlier", type=Path, nargs="*", default=[], metavar="JSON")
    parser.add_argument("--plots", type=Path, metavar="DIR")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    requests = drawn(requests_of_atlas(), options.corrections)
    rows = tables.earlier(options.earlier, "batches")
    for editor in filter(None, options.editors.split(",")):
        with (
            tempfile.TemporaryDirectory() as folder,
            init(Path(folder) / "store", NewStore(watch=UNWATCHED)) as session,
        ):
            rows += run(session, requests, editor, options.batch_size)
    marked = [row for row in rows if row["edits"] in MARKS or row["edits"] == len(requests)]
    title = f"Corrections of the atlas in batches of {options.batch_size}"
    tables.show(title, COLUMNS, marked)
    if options.plots:
        draw(rows, options.plots)
    tables.write_json(options.json, "batches", {"batches": rows})


if __name__ == "__main__":
    main()
