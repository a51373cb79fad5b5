"""Measures how many facts one batch of weight edits takes: MEMIT and its family on the atlas.

    python -m benchmarks.capacity [--sizes 10,30,50,100,300,1000] [--weights 0.1,1,10]
                                  [--editors memit,emmet,alphaedit,rome] [--earlier JSON ...]
                                  [--plots DIR] [--json OUT]

Each run is one batch on the bare atlas (ROME: one request after another). The drift budget is off,
so that the curve shows why there is one. The table has CounterFact's scores, SR and GR by greedy
exact match, retention (TestR, Locality, and Locality for facts about the same subject), how far the
matrix has moved, and the seconds. `--weights` are MEMIT's lambda. `--earlier` adds the results of
other runs to the table and the plot; `--editors ""` runs none.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import plots, tables
from benchmarks.scores import drawn, same_subject_locality, scores
from benchmarks.tables import TextColumn
from continual.embedded import ATLAS
from continual.locate_then_edit.drift import drift_of
from continual.new_store import NewStore, init
from continual.readers import read_record
from continual.requests import Request
from continual.session import Session
from continual.watch.config import UNWATCHED

SIZES = (10, 30, 50, 100, 300, 1000)
EDITORS = ("memit", "emmet", "alphaedit", "rome")
WEIGHTED = "memit"  # the editor that is run over lambda
UNBOUNDED = 1e6

COLUMNS = (
    TextColumn("editor", "editor"),
    TextColumn("lambda", "weight", "g"),
    TextColumn("edits", "edits", ",d"),
    *(TextColumn(name, name, ".3f") for name in ("ES", "PS", "NS", "S")),
    *(TextColumn(name, name, ".3f") for name in ("SR", "GR", "TestR", "TrainR", "Locality")),
    TextColumn("same subject", "same_subject", ".3f"),
    TextColumn("drift", "drift", ".3f"),
    TextColumn("seconds", "seconds", ".1f"),
)


@dataclass(frozen=True)
class CapacityRun:
    """One batch of one editor."""

    editor: str
    edits: int
    weight: float | None = None  # lambda; None for the editor's default

    @property
    def settings(self) -> dict[str, Any]:
        """The editor's settings, without a drift budget; with lambda if the run names one."""
        own = {} if self.weight is None else {"moment_weight": self.weight}
        return {"drift_max": UNBOUNDED, **own}


def requests_of_atlas() -> list[Request]:
    """Return the atlas's own corrections."""
    lines = ATLAS.corrections.read_text(encoding="utf-8").splitlines()
    return [request for line in lines for request in read_record(json.loads(line))]


def measure(session: Session, requests: Sequence[Request], run: CapacityRun) -> dict[str, Any]:
    """Apply one run and return its row; the session is at base before and after."""
    chosen = drawn(requests, run.edits)
    settings = session.settings(
        chain=(run.editor,), editors={run.editor: run.settings}, batch_size=len(chosen)
    )
    started = time.perf_counter()
    (step,) = session.apply_requests(chosen, settings)
    seconds = time.perf_counter() - started
    assert step.measured is not None
    row = {
        "editor": run.editor,
        "weight": run.weight,
        "edits": len(chosen),
        **scores(session, chosen),
        **step.measured.rates.to_json(),
        "same_subject": same_subject_locality(session, chosen),
        "drift": drift(session),
        "seconds": seconds,
    }
    session.rollback("base")
    return row


def drift(session: Session) -> float:
    """Return the largest distance of a matrix from the base's, as the drift budget counts it."""
    moved = []
    for block in sorted(session.edited.reach.blocks):
        weight = session.edited.weight(block)
        moment = session.statistics.get(block).second_moment.float()
        moved.append(drift_of(weight.base.float(), weight.sum - weight.base, moment))
    return max(moved, default=0.0)


def runs(
    editors: Iterable[str], sizes: Sequence[int], weights: Sequence[float]
) -> list[CapacityRun]:
    """Return a run for every editor and size, and one for every lambda and size of MEMIT."""
    own = [CapacityRun(editor, size) for editor in editors for size in sizes]
    return own + [CapacityRun(WEIGHTED, size, weight) for weight in weights for size in sizes]


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw efficacy, generality and retention over the size of the batch, for each editor."""
    own = [row for row in rows if row["weight"] is None]
    titles = {"SR": "SR: right on the prompt", "GR": "GR: held-out phrasings", "TestR": "TestR"}
    figure = plots.panels(own, "edits", titles, "edits in one batch")
    for axes in figure.axes:
        axes.set_xscale("log")
    plots.save(figure, folder, "capacity")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=_integers, default=list(SIZES), metavar="10,30,...")
    parser.add_argument("--weights", type=_numbers, default=[], metavar="0.1,1,...")
    parser.add_argument("--editors", default=",".join(EDITORS))
    parser.add_argument("--earlier", type=Path, nargs="*", default=[], metavar="JSON")
    parser.add_argument("--plots", type=Path, metavar="DIR")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    requests = requests_of_atlas()
    rows = tables.earlier(options.earlier, "runs")
    editors = list(filter(None, options.editors.split(",")))
    with (
        tempfile.TemporaryDirectory() as folder,
        init(Path(folder) / "store", NewStore(watch=UNWATCHED)) as session,
    ):
        for run in runs(editors, options.sizes, options.weights):
            rows.append(measure(session, requests, run))
            tables.note(f"{run}: {rows[-1]['seconds']:.1f} s")
            tables.write_json(options.json, "capacity", {"runs": rows})  # a later one may take long
    tables.show("One batch of weight edits on the atlas", COLUMNS, rows)
    if options.plots:
        draw(rows, options.plots)
    tables.write_json(options.json, "capacity", {"runs": rows})


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
