"""Measures ten thousand corrections of the atlas, all of them in force at the end.

    python -m benchmarks.long_streams FOLDER [--runs tpatcher,serac,memit,auto] [--edits 10000]
                                      [--recheck exact|every=N] [--repair] [--settings JSON]
                                      [--plots DIR] [--json OUT] [--report]

T-Patcher and SERAC take the stream one by one; MEMIT and `auto` take it in batches of 50. FOLDER
keeps a run's store and a line for each of its steps, so that a stopped run goes on from there.
`--report` makes tables and plots of the existing lines. The table has the metrics after 100, 300,
1,000, 3,000 and 10,000 edits, and the milliseconds of a step and of its re-check as medians around
these. `--settings` is a table for the run's first editor; with `--repair` each step mends the
earlier edits that were found broken.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import plots, tables
from benchmarks.long_corrections import is_of_atlas, long_stream, write
from benchmarks.tables import TextColumn
from continual.editors.chains import chain_of
from continual.new_store import NewStore, init
from continual.recheck.retention import APPLIED, ATTEMPTED
from continual.requests import Request
from continual.session import Session, open_session
from continual.settings import DEFAULT_TASK
from continual.step.pipeline import Step
from continual.step.settings import Recheck
from continual.streams import open_stream

MARKS = (100, 300, 1000, 3000, 10_000)
WINDOW = 25  # steps on either side of a mark, over which times are medians
NOTED_EVERY = 200  # steps
BATCH = 50
STREAM = "stream.jsonl"
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

RATES = ("SR", "GR", "ER", "TrainR", "TestR", "Locality")
COLUMNS = (
    TextColumn("run", "run"),
    TextColumn("edits", "edits", ",d"),
    *(TextColumn(name, name, ".4f") for name in RATES),
    TextColumn("GR, atlas", "GR_atlas", ".4f"),
    TextColumn("GR, ParaRel", "GR_pararel", ".4f"),
    TextColumn("failed", "failed", ",d"),
    TextColumn("step, ms", "edit_ms", ".1f"),
    TextColumn("own probes, ms", "probe_ms", ".1f"),
    TextColumn("re-check, ms", "recheck_ms", ".1f"),
    TextColumn("probes", "probes", ",d"),
    TextColumn("neurons", "neurons", ",d"),
    TextColumn("memory, MB", "resident_mb", ",.0f"),
    TextColumn("patches, MB", "patches_mb", ",.1f"),
)
PANELS = {
    "SR": "SR",
    "GR": "GR: wordings not learned from",
    "ER": "ER: earlier edits",
    "TrainR": "TrainR: facts in memory",
    "TestR": "TestR: facts never in memory",
    "Locality": "Locality",
}


@dataclass(frozen=True)
class StreamRun:
    """A way to apply the stream."""

    name: str
    batch_size: int = 1
    recheck: Recheck = field(default_factory=Recheck)
    repair: bool = False
    table: Mapping[str, Any] = field(default_factory=dict)  # of the first editor

    @classmethod
    def of(cls, name: str, options: argparse.Namespace) -> StreamRun:
        """Return the run of this name; weight edits come in batches."""
        batch_size = BATCH if "memit" in chain_of(name, DEFAULT_TASK) else 1
        recheck = Recheck.parse(options.recheck)
        return cls(name, batch_size, recheck, options.repair, options.settings)

    def steps(self, session: Session, stream: Path) -> Iterator[Step]:
        """Yield the steps of the stream, from the place that the store has reached."""
        chain = chain_of(self.name, session.task.name)
        editors = {**session.settings().editors, chain[0]: dict(self.table)}
        settings = session.settings(
            chain=chain,
            batch_size=self.batch_size,
            recheck=self.recheck,
            repair=self.repair,
            editors=editors,
        )
        return session.steps(open_stream(str(stream)), settings)


class StreamTally:
    """Builds a run's lines, and counts GR by source."""

    def __init__(self, requests: Iterable[Request], rows: Sequence[Mapping[str, Any]]) -> None:
        """Take up the counts from `rows`, the lines of the run's earlier steps."""
        self._of_atlas = {request.id: is_of_atlas(request) for request in requests}
        last = rows[-1] if rows else {}
        self._generality = {True: last.get("atlas", [0, 0]), False: last.get("pararel", [0, 0])}

    def row(self, session: Session, step: Step) -> dict[str, Any]:
        """Return a step's line."""
        attempted = [o for o in step.outcomes if o.outcome in ATTEMPTED]
        run_state = session.run_state
        return {
            "edits": run_state.retention.attempts.total,
            "failed": sum(o.outcome != APPLIED for o in attempted),
            "reasons": sorted({o.reason for o in attempted if o.reason}),
            "editors": Counter(o.editor for o in attempted if o.editor),
            "edit_ms": 1e3 * step.edit_s,
            "probe_ms": 1e3 * step.probe_s,
            "recheck_ms": 1e3 * step.recheck_s,
            "patch_bytes": step.patch_bytes,
            "resident_mb": _resident_mb(),
            "neurons": session.site.bank.size,
            "probes": len(run_state.ledger.entries),
            **self._measured(step, [o.id for o in attempted]),
        }

    def _measured(self, step: Step, ids: Sequence[str]) -> dict[str, Any]:
        """Return the metrics if a re-check followed the step, with GR by source for single
        requests."""
        if step.measured is None:
            return {}
        if len(ids) == 1:
            counted = self._generality[self._of_atlas[ids[0]]]
            fresh = step.measured.generality
            counted[:] = [counted[0] + fresh.right, counted[1] + fresh.total]
        turned = Counter(
            f"{key.rsplit(':', 2)[1]} {'mended' if now else 'broke'}"
            for key, now in step.measured.turned.items()
        )
        return {
            **step.measured.rates.to_json(),
            "atlas": self._generality[True],
            "pararel": self._generality[False],
            "turned": turned,
        }


def run(chosen: StreamRun, folder: Path, edits: int) -> None:
    """Apply the stream until `edits` edits are attempted; write each step's line at once."""
    stream = folder / STREAM
    place, lines = folder / f"{chosen.name}.store", folder / f"{chosen.name}.jsonl"
    requests = long_stream(max(edits, MARKS[-1]))
    if not stream.exists():
        write(requests, stream)
    rows = _read(lines)
    started = time.perf_counter()
    with (
        open_session(place) if place.exists() else init(place, NewStore()) as session,
        lines.open("a", buffering=1, encoding="utf-8") as file,
    ):
        tally = StreamTally(requests, rows)
        for number, step in enumerate(chosen.steps(session, stream), start=1):
            row = tally.row(session, step)
            file.write(json.dumps(row) + "\n")
            if number % max(1, NOTED_EVERY // chosen.batch_size) == 0:
                tables.note(_noted(chosen.name, row, time.perf_counter() - started))
            if row["edits"] >= edits:
                break


def _noted(name: str, row: Mapping[str, Any], seconds: float) -> str:
    rates = " ".join(f"{rate} {row[rate]:.4f}" for rate in RATES if row.get(rate) is not None)
    times = f"{row['edit_ms']:.1f} + {row['recheck_ms']:.1f} ms"
    return f"{name}: {row['edits']} edits, {seconds:.0f} s, {rates}, {times}"


def summaries(name: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row of the table for each mark that was reached, and for the last step."""
    ends = [row["edits"] for row in rows]
    reached = sorted({mark for mark in MARKS if mark <= ends[-1]} | {ends[-1]})
    places = [next(i for i, end in enumerate(ends) if end >= mark) for mark in reached]
    return [{"run": name, **_summary(rows, place)} for place in places]


def _summary(rows: Sequence[Mapping[str, Any]], place: int) -> dict[str, Any]:
    near = rows[max(0, place - WINDOW) : place + WINDOW]
    measured = next((row for row in rows[place:] if "ER" in row), rows[place])
    counts = {f"GR_{source}": measured.get(source, [0, 0]) for source in ("atlas", "pararel")}
    times = ("edit_ms", "probe_ms", "recheck_ms")
    return {
        **{name: rows[place][name] for name in ("edits", "probes", "neurons", "resident_mb")},
        **{rate: measured.get(rate) for rate in RATES},
        **{name: right / total if total else None for name, (right, total) in counts.items()},
        **{name: statistics.median(row[name] for row in near) for name in times},
        "failed": sum(row["failed"] for row in rows[: place + 1]),
        "patches_mb": sum(row["patch_bytes"] for row in rows[: place + 1]) / 1e6,
    }


def report(folder: Path, names: Sequence[str], options: argparse.Namespace) -> None:
    """Make tables, plots and JSON of the runs in the folder."""
    found = {name: _read(folder / f"{name}.jsonl") for name in names}
    rows = [row for name, lines in found.items() if lines for row in summaries(name, lines)]
    tables.show("A stream of ten thousand corrections", COLUMNS, rows)
    if options.plots:
        draw(found, options.plots)
    tables.write_json(options.json, "long_streams", {"marks": rows})


def draw(found: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> None:
    """Draw the metrics over the stream, a step's time and the memory, with a line for each run."""
    measured = [
        {**row, "editor": name}
        for name, rows in found.items()
        for row in _thinned([row for row in rows if "ER" in row])
    ]
    plots.save(plots.curves(measured, "edits", PANELS, "edits"), folder, "long_streams")
    costs = {"edit_ms": "a step, ms", "recheck_ms": "its re-check, ms", "resident_mb": "memory, MB"}
    smooth = [
        {**row, "editor": name} for name, rows in found.items() for row in _medians(rows, costs)
    ]
    figure = plots.curves(smooth, "edits", costs, "edits", log=True)
    plots.save(figure, folder, "long_streams_costs")


POINTS_MAX = 200  # of a curve


def _thinned(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return at most POINTS_MAX rows, evenly spaced, with the last row among them."""
    every = -(-len(rows) // POINTS_MAX) or 1
    return rows[::-1][::every][::-1]


def _medians(rows: Sequence[Mapping[str, Any]], names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield at most POINTS_MAX rows, each with the medians of these numbers over its steps."""
    every = -(-len(rows) // POINTS_MAX) or 1
    for first in range(0, len(rows), every):
        part = rows[first : first + every]
        medians = {name: statistics.median(row[name] for row in part) for name in names}
        yield {"edits": part[-1]["edits"], **medians}


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _resident_mb() -> float:
    """Return the megabytes that this process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * PAGE_BYTES / 1e6


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", default="tpatcher,serac,memit,auto")
    parser.add_argument("--edits", type=int, default=MARKS[-1])
    parser.add_argument("--recheck", default="exact")
    parser.add_argument("--repair", action="store_true")
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--plots", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    names = options.runs.split(",")
    if not options.report:
        for name in names:
            run(StreamRun.of(name, options), options.folder, options.edits)
    report(options.folder, names, options)


if __name__ == "__main__":
    main()
