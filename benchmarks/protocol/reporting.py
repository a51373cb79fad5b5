"""The results of all runs: a table over folds beside the paper's rows, and curves over the
stream."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.protocol import published
from benchmarks.protocol.runs import RATES, FoldRun
from benchmarks.protocol.settings import TaskSetting
from benchmarks.tables import TextColumn

POINTS = 25  # of a curve
CURVES = {"ER": "ER: earlier edits", "TrainR": "TrainR", "TestR": "TestR"}
COLUMNS = (
    TextColumn("editor", "editor"),
    TextColumn("model", "model"),
    TextColumn("folds", "folds", "d"),
    TextColumn("inputs met", "met", ",.0f"),
    TextColumn("edits", "edits", ",.0f"),
    *(TextColumn(name, name) for name in RATES),
    TextColumn("edit, s", "edit_s", ".3f"),
    TextColumn("re-check, s", "recheck_s", ".3f"),
    TextColumn("patch, bytes", "bytes", ",.0f"),
)
INITIAL_COLUMNS = (
    TextColumn("probes", "probes"),
    TextColumn("asked", "asked", ",d"),
    TextColumn("right", "right", ".3f"),
)


def table(setting: TaskSetting, runs: Sequence[FoldRun]) -> list[dict[str, Any]]:
    """Return a row for each editor, then the paper's rows with the name of their model.

    An editor's rates are the mean ± deviation over the folds at their ends.
    """
    rows = []
    for editor in dict.fromkeys(run.label for run in runs):
        ends = [run for run in runs if run.label == editor and run.rows]
        if ends:
            rows.append({"editor": editor, "model": setting.architecture, **_over_folds(ends)})
    theirs = published.rows(setting.task)
    return rows + [{**row, **{name: f"{row[name]:.3f}" for name in RATES}} for row in theirs]


def initial(runs: Sequence[FoldRun]) -> list[dict[str, Any]]:
    """Return the initial model's share of right answers before the first edit, by probe set."""
    base = runs[0].base if runs else {}
    return [
        {"probes": name, "asked": asked, "right": right / asked}
        for name, (right, asked) in base.items()
        if asked
    ]


def _over_folds(runs: Sequence[FoldRun]) -> dict[str, Any]:
    ends = [run.rows[-1] for run in runs]
    every = [row for run in runs for row in run.rows]
    return {
        "folds": len(runs),
        "met": statistics.fmean(end["met"] for end in ends),
        "edits": statistics.fmean(run.edits for run in runs),
        **{name: _mean_and_deviation(end[name] for end in ends) for name in RATES},
        **{name: _median(row.get(name) for row in every) for name in ("edit_s", "recheck_s")},
        "bytes": _median(row["bytes"] for row in every),
    }


def _mean_and_deviation(values: Iterable[float | None]) -> str | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = f"{statistics.fmean(known):.3f}"
    return f"{mean} ± {statistics.stdev(known):.3f}" if len(known) > 1 else mean


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def curves(runs: Sequence[FoldRun]) -> list[dict[str, Any]]:
    """Return means over folds along the stream, for each editor as far as all of its folds go."""
    rows: list[dict[str, Any]] = []
    for editor in dict.fromkeys(run.label for run in runs):
        own = [run.rows for run in runs if run.label == editor]
        shared = min(map(len, own))
        step = max(1, shared // POINTS)
        for place in sorted({*range(0, shared, step), shared - 1} if shared else ()):
            at = [found[place] for found in own]
            means = {name: _mean(row[name] for row in at) for name in CURVES}
            rows.append({"editor": editor, "edits": place + 1, **means})
    return rows


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def draw(rows: Sequence[Mapping[str, Any]], folder: Path, name: str) -> None:
    """Draw ER, TrainR and TestR over the stream, as PNG and SVG."""
    plots.save(plots.panels(rows, "edits", CURVES, "edits"), folder, name)
