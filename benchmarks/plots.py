"""The benchmarks' plots: panels of lines side by side, as PNG and SVG.

The legend stands in the first panel that has a line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^vPX<>*"
COLUMNS = 3
BOTTOM_MAX = 0.9
MARKED_MAX = 10  # points of a line: few are shown one by one


def panels(
    rows: Sequence[Mapping[str, Any]], x: str, titles: Mapping[str, str], label: str
) -> Figure:
    """Draw a panel for each share named in `titles` over the rows' `x`, a line for each editor.

    All panels share one range: from a tenth that lies below all shares up to one.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    shares = [row[name] for row in rows for name in titles if row[name] is not None]
    bottom = min(BOTTOM_MAX, math.floor(10 * min(shares, default=0.0)) / 10)
    editors = dict.fromkeys(row["editor"] for row in rows)
    for place, (name, title) in enumerate(titles.items(), start=1):
        axes = figure.add_subplot(1, len(titles), place)
        for editor, marker in zip(editors, MARKERS, strict=False):
            own = [row for row in rows if row["editor"] == editor and row[name] is not None]
            if own:
                points = [(row[x], row[name]) for row in own]
                axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=editor)
        axes.set_ylim(bottom - 0.03 * (1 - bottom), 1 + 0.05 * (1 - bottom))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    _legend(figure)
    return figure


def curves(
    rows: Sequence[Mapping[str, Any]],
    x: str,
    titles: Mapping[str, str],
    label: str,
    *,
    log: bool = False,
    shares: bool = False,
) -> Figure:
    """Draw the panels of long runs, three in a row, each with its own range.

    Lines of many points have no markers; `log` makes the range logarithmic. `shares` are drawn from
    0 to 1, over a logarithmic x.
    """
    from matplotlib.figure import Figure

    lines = -(-len(titles) // COLUMNS)
    figure = Figure(figsize=(10.5, 2.9 * lines + 0.3), layout="constrained")
    editors = dict.fromkeys(row["editor"] for row in rows)
    for place, (name, title) in enumerate(titles.items(), start=1):
        axes = figure.add_subplot(lines, COLUMNS, place)
        for number, editor in enumerate(editors):
            own = [row for row in rows if row["editor"] == editor and row.get(name) is not None]
            if own:
                points = [(row[x], row[name]) for row in own]
                marker = "o" if len(points) <= MARKED_MAX else None
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, marker=marker, color=f"C{number}", label=editor)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(label)
        axes.set_yscale("log" if log else "linear")
        if shares:
            axes.set(xscale="log", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
    _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    """Add the names of the lines; nothing if no line is drawn, as for a run never measured."""
    for axes in figure.axes:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
            return


def save(figure: Figure, folder: Path, name: str) -> None:
    """Save a figure as PNG and as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending in ("png", "svg"):
        figure.savefig(folder / f"{name}.{ending}", dpi=160)
