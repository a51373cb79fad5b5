"""Plots of traces: heat maps of one fact, and the averages of a set as lines with their intervals.

Colours begin at the corrupted score, so that what is white brought nothing back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from continual.analysis.tracing.averages import GroupEffect, TraceAverages
from continual.analysis.tracing.config import WITHOUT
from continual.analysis.tracing.modules import ATTENTION, FFN, STATE
from continual.analysis.tracing.results import (
    AFTER,
    END,
    FIRST,
    FURTHER,
    LAST,
    MIDDLE,
    FactTrace,
    TraceMap,
)
from continual.errors import CeditError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHADES = {
    STATE: "Purples",
    FFN: "Greens",
    ATTENTION: "Reds",
    WITHOUT[FFN]: "Purples",
    WITHOUT[ATTENTION]: "Purples",
}
TITLES = {
    STATE: "state",
    FFN: "FFN output",
    ATTENTION: "attention output",
    WITHOUT[FFN]: "state, FFN severed",
    WITHOUT[ATTENTION]: "state, attention severed",
}
COLOURS = {
    FIRST: "#56b4e9",
    MIDDLE: "#0072b2",
    LAST: "#7b3fa0",
    AFTER: "#e69f00",
    FURTHER: "#8a8f94",
    END: "#d1495b",
}
COLUMNS = 3  # panels side by side
DOTS_PER_INCH = 160
BLOCKS_NAMED_MAX = 9
LABEL_MAX = 22  # characters of a token beside a map
INK, FAINT = "#22262a", "#d9dcdf"


def draw_facts(traces: Sequence[tuple[str, FactTrace]], path: Path) -> None:
    """Draw the heat maps of one fact to a file whose ending names its format: a row for each state
    of the model, under its title. Raises CeditError without matplotlib, or for a file that cannot
    be written."""
    kinds = [trace_map.kind for trace_map in traces[0][1].maps]
    tokens = max(len(trace.tokens) for _, trace in traces)
    lines = -(-len(kinds) // COLUMNS)
    height = 0.4 + lines * (1.1 + 0.21 * tokens)
    figure = _figure((1.6 + 3.1 * min(COLUMNS, len(kinds)), height * len(traces)))
    rows = figure.subfigures(len(traces), 1, squeeze=False)[:, 0]
    for row, (title, trace) in zip(rows, traces, strict=True):
        row.suptitle(title, x=0.01, ha="left", fontsize=9.5, color=INK)
        for place, (panel, kind) in enumerate(zip(_panels(row, len(kinds)), kinds, strict=True)):
            if (found := trace.map(kind)) is not None:
                _heat(row, panel, trace, found, has_labels=place % COLUMNS == 0)
    _save(figure, path)


def draw_averages(sets: Sequence[tuple[str, TraceAverages]], path: Path) -> None:
    """Draw the average indirect effects of sets of facts, as `draw_facts` draws maps: a panel for
    each kind, a line for each group of tokens with its 95 % interval. Raises CeditError."""
    drawn = [(title, averages) for title, averages in sets if averages.effects]
    if not drawn:
        raise CeditError(
            "There is nothing to plot: of none of these facts does the model give the answer, and "
            "lose it by the noise. --own-answers traces the model's own next tokens."
        )
    kinds = list(drawn[0][1].effects)
    lines = -(-len(kinds) // COLUMNS)
    figure = _figure((0.4 + 3.5 * min(COLUMNS, len(kinds)), (3.0 * lines + 0.6) * len(drawn)))
    rows = figure.subfigures(len(drawn), 1, squeeze=False)[:, 0]
    for row, (title, averages) in zip(rows, drawn, strict=True):
        row.suptitle(title, x=0.01, ha="left", fontsize=9.5, color=INK)
        panels = _panels(row, len(kinds), sharey=True)
        for panel, kind in zip(panels, kinds, strict=True):
            _lines(panel, TITLES[kind], averages.effects.get(kind, {}))
        panels[0].set_ylabel("average indirect effect", fontsize=8.5)
        handles, labels = panels[0].get_legend_handles_labels()
        row.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=len(labels),
            fontsize=8,
            frameon=False,
        )
    _save(figure, path)


def _heat(
    figure: Any, panel: Any, trace: FactTrace, trace_map: TraceMap, *, has_labels: bool
) -> None:
    floor = trace.floor
    highest = max(max(row) for row in trace_map.probability)
    image = panel.imshow(
        trace_map.probability,
        cmap=SHADES[trace_map.kind],
        vmin=floor,
        vmax=max(highest, floor + 1e-3),
        aspect="auto",
        interpolation="nearest",
    )
    window = f", {trace_map.window} blocks" if trace_map.window > 1 else ""
    panel.set_title(TITLES[trace_map.kind] + window, fontsize=9, color=INK)
    panel.set_xlabel("block", fontsize=8.5)
    labels = _labels(trace) if has_labels else []
    panel.set_yticks(range(len(labels)), labels)
    _quiet(panel)
    _number_blocks(panel, trace_map.blocks)
    bar = figure.colorbar(image, ax=panel, fraction=0.05, pad=0.02)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.outline.set_visible(False)


def _panels(figure: Any, count: int, **options: Any) -> list[Any]:
    """Return so many panels of a figure, COLUMNS side by side."""
    lines = -(-count // COLUMNS)
    panels = list(figure.subplots(lines, min(COLUMNS, count), squeeze=False, **options).flat)
    for panel in panels[count:]:
        panel.set_visible(False)
    return panels[:count]


def _number_blocks(panel: Any, blocks: Sequence[int]) -> None:
    """Name some of the blocks that a map's columns are."""
    step = -(-len(blocks) // BLOCKS_NAMED_MAX)
    places = range(0, len(blocks), step)
    panel.set_xticks(places, [str(blocks[place]) for place in places])


def _labels(trace: FactTrace) -> list[str]:
    """Return the tokens with their texts as a plot can show them; the subject's have a star."""
    marked = set(trace.subject_places)
    return [
        plottable(text) + (" *" if place in marked else "")
        for place, text in enumerate(trace.tokens)
    ]


def plottable(text: str) -> str:
    """Return a token's text in characters that every font and every plot has: matplotlib reads
    a dollar sign as mathematics."""
    shown = "".join(c if c.isprintable() else "·" for c in text.strip() or "␣")
    shown = shown if len(shown) <= LABEL_MAX else shown[: LABEL_MAX - 1] + "…"
    return shown.replace("$", r"\$")


def _lines(panel: Any, title: str, effects: Mapping[str, GroupEffect]) -> None:
    for group, effect in effects.items():
        means = [block.mean for block in effect.means]
        low = [block.mean - block.half for block in effect.means]
        high = [block.mean + block.half for block in effect.means]
        colour = COLOURS[group]
        panel.fill_between(effect.blocks, low, high, color=colour, alpha=0.16, linewidth=0)
        panel.plot(effect.blocks, means, color=colour, linewidth=1.6, label=group)
    panel.set_title(title, fontsize=9, color=INK)
    panel.set_xlabel("block", fontsize=8.5)
    panel.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    panel.grid(axis="y", color=FAINT, linewidth=0.5)
    _quiet(panel)


def _quiet(panel: Any) -> None:
    """Leave out the frame, and count blocks in whole numbers."""
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    panel.tick_params(labelsize=8, length=2, color=FAINT)
    for side in panel.spines.values():
        side.set_visible(False)


def _figure(size: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CeditError(
            "A plot needs matplotlib, which is not installed: pip install 'cedit[plots]'."
        ) from error
    return Figure(figsize=size, layout="constrained", facecolor="white")


def require_plottable(path: Path) -> None:
    """Raise CeditError if no plot can be written to a path: before hours of work, not behind
    them."""
    figure = _figure((1, 1))
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in formats:
        raise CeditError(f"The plot {path} names no format: end it in .png, .svg or .pdf.")
    if not path.parent.is_dir():
        raise CeditError(f"The plot cannot be written to {path}: there is no folder {path.parent}.")


def _save(figure: Figure, path: Path) -> None:
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(path, dpi=DOTS_PER_INCH)
    except (OSError, ValueError) as error:
        raise CeditError(f"The plot cannot be written to {path}: {error}") from error
