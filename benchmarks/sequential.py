"""Measures T-Patcher's sequential protocol on the atlas: 1,000 corrections, one by one.

    python -m benchmarks.sequential [--edits N] [--watch JSON] [--margins 0,0.1,...] [--plots DIR]
        [--json OUT]

Measures all earlier edits again after every edit. The table has the metrics after 100, 300 and
1,000 edits, and the milliseconds of an edit (plan, edit, prove), of its commit to disk and of the
re-check as medians around these. `--watch '{"neighbours": 0}'` gives the store that `[watch]`
table. With `--margins` the same run is made at each margin of T-Patcher, and a plot shows the
trade-off between generality and retention.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import plots, tables
from benchmarks.tables import TextColumn
from continual.embedded import ATLAS
from continual.new_store import NewStore, init
from continual.recheck.metrics import Rates
from continual.recheck.retention import ATTEMPTED
from continual.session import Session
from continual.step.pipeline import Step
from continual.streams import open_stream

MARKS = (100, 300, 1000)
WINDOW = 50  # edits
NOTED_EVERY = 100

RATES = ("SR", "GR", "ER", "TrainR", "TestR", "Locality")
COLUMNS = (
    TextColumn("edits", "edits", ",d"),
    *(TextColumn(name, name, ".4f") for name in RATES),
    TextColumn("edit, ms", "edit_ms", ".1f"),
    TextColumn("commit, ms", "commit_ms", ".1f"),
    TextColumn("re-check, ms", "recheck_ms", ".1f"),
    TextColumn("probes", "probes", ",d"),
    TextColumn("patch, bytes", "patch_bytes", ",.0f"),
    TextColumn("all patches, bytes", "patches_bytes", ",d"),
)
MARGIN_COLUMNS = (TextColumn("margin", "margin", ".2f"), *COLUMNS)


@dataclass(frozen=True)
class Made:
    """One edit of a run."""

    step: Step
    rates: Rates
    probes: int  # measured again after the edit


def run(session: Session, steps: Iterable[Step], edits: int) -> list[Made]:
    """Take steps of one request each until `edits` edits are attempted; skipped ones do not
    count."""
    made: list[Made] = []
    started = time.perf_counter()
    for step in steps:
        if step.outcomes and step.outcomes[0].outcome in ATTEMPTED and step.measured:
            made.append(Made(step, step.measured.rates, len(session.run_state.ledger.entries)))
            if len(made) % NOTED_EVERY == 0:
                tables.note(f"{len(made)} edits, {time.perf_counter() - started:.0f} s")
        if len(made) == edits:
            break
    return made


def summaries(made: Sequence[Made], marks: Iterable[int] = MARKS) -> list[dict[str, Any]]:
    """Return a row of the table for each mark that was reached, and one for the end."""
    reached = sorted({mark for mark in marks if mark <= len(made)} | {len(made)})
    return [_summary(made, mark) for mark in reached if mark]


def _summary(made: Sequence[Made], mark: int) -> dict[str, Any]:
    last = made[mark - 1]
    near = [one.step for one in made[max(0, mark - WINDOW // 2) : mark + WINDOW // 2]]
    return {
        "edits": mark,
        **last.rates.to_json(),
        "edit_ms": 1e3 * statistics.median(step.edit_s - step.commit_s for step in near),
        "commit_ms": 1e3 * statistics.median(step.commit_s for step in near),
        "recheck_ms": 1e3 * statistics.median(step.recheck_s for step in near),
        "probes": last.probes,
        "patch_bytes": statistics.median(step.patch_bytes for step in near),
        "patches_bytes": sum(one.step.patch_bytes for one in made[:mark]),
    }


def run_atlas(
    edits: int, editor: str, table: dict[str, Any], watch: dict[str, Any] | None = None
) -> list[Made]:
    """Apply the atlas's corrections in a store of their own, with these settings of the editor
    and of the watch set."""
    with (
        tempfile.TemporaryDirectory() as folder,
        init(Path(folder) / "store", NewStore(watch=watch)) as session,
    ):
        settings = session.settings(chain=(editor,), editors={editor: table})
        steps = session.steps(open_stream(str(ATLAS.corrections)), settings)
        return run(session, steps, edits)


def sweep(edits: int, margins: Sequence[float]) -> list[dict[str, Any]]:
    """Return the last row of a run at each margin."""
    rows = []
    for margin in margins:
        tables.note(f"margin {margin}")
        made = run_atlas(edits, "tpatcher", {"margin": margin})
        rows.append({"margin": margin, **summaries(made, ())[-1]})
    return rows


def draw(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Draw GR, TrainR and TestR over the margin, as PNG and SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    margins = [row["margin"] for row in rows]
    names = {
        "GR": "GR: phrasings that the edits did not learn from",
        "TestR": "TestR: facts never in memory",
        "TrainR": "TrainR: facts in memory",
    }
    for (name, label), marker in zip(names.items(), "o^s", strict=True):
        axes.plot(margins, [row[name] for row in rows], marker=marker, markersize=4, label=label)
    axes.set_xlabel("margin (0: fires just above memory, 1: on the edit's own query only)")
    axes.set_ylabel(f"after {rows[0]['edits']:,} edits")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    plots.save(figure, folder, "margins")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--edits", type=int, default=MARKS[-1])
    parser.add_argument("--editor", default="tpatcher")
    parser.add_argument("--watch", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("--margins", type=_numbers, default=[], metavar="0,0.1,...")
    parser.add_argument("--plots", type=Path, default=Path("plots"), metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    if options.margins:
        rows = sweep(options.edits, options.margins)
        tables.show("T-Patcher's margin on the atlas", MARGIN_COLUMNS, rows)
        draw(rows, options.plots)
        tables.write_json(options.json, "margins", {"margins": rows})
        return
    rows = summaries(run_atlas(options.edits, options.editor, {}, options.watch))
    tables.show(f"Sequential corrections of the atlas by {options.editor}", COLUMNS, rows)
    tables.write_json(options.json, "sequential", {"editor": options.editor, "marks": rows})


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
