"""The change of P for each relation, as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.knowledge_neurons.changes import KINDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bars(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw the change of P for each relation: a group of bars, one for each kind of neurons."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    names = [row["relation"] for row in rows]
    width = 0.8 / len(KINDS)
    for number, effect in enumerate(("suppressed", "amplified"), start=1):
        axes = figure.add_subplot(2, 1, number)
        for place, (kind, label) in enumerate(KINDS.items()):
            heights = [100 * row[kind][effect] if row[kind] else 0.0 for row in rows]
            xs = [x + (place - 1) * width for x in range(len(rows))]
            axes.bar(xs, heights, width, label=label)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel("change of P(answer), %")
        axes.set_title(f"{title}: {effect} at the answer's place", fontsize=10)
        rotation = 0 if max(map(len, names)) <= 6 else 40
        ends = "center" if not rotation else "right"
        axes.set_xticks(range(len(rows)), names, fontsize=8, rotation=rotation, ha=ends)
        axes.grid(alpha=0.3, axis="y")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure
