"""The two charts of the page: the metrics, and the time of each step, over the revisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cli.output import one_line
from cli.report import axes, lanes
from cli.report.chart import Chart, Flag, Series, draw
from cli.report.markup import Markup, element, join
from cli.report.texts import entry, moment, rate, seconds
from cli.report.thinning import Dot
from continual.reporting import BranchMark, HistoryReport, Point, StepTime, Stop
from store import operations

DRAWN = {"SR": "sr", "GR": "gr", "ER": "er", "TrainR": "train", "TestR": "test"}
NAMES = {
    "SR": "right after the edit",
    "GR": "other wordings",
    "ER": "earlier corrections",
    "TrainR": "training answers",
    "TestR": "test answers",
}
WIDTHS = {"TrainR": 5.0, "TestR": 3.6, "SR": 2.6, "GR": 2.0, "ER": 1.5}  # of lines that coincide
TIMED = {"edit": "er", "new probes": "sr", "re-check": "gr"}
WIDE, NARROW = (940, 290), (340, 240)  # pixels
FLAT = 130  # pixels of height where no line leaves 1
X_LABEL = "revision"
SPAN_MIN = 0.01  # of the rates' axis
TIME_MIN_S = 1e-4  # shorter durations lie on the axis


@dataclass(frozen=True)
class _ChartSize:
    width: int
    height: int
    x_ticks: int


_SIZES = {"wide": _ChartSize(*WIDE, x_ticks=10), "narrow": _ChartSize(*NARROW, x_ticks=4)}


def metrics(report: HistoryReport) -> Markup | None:
    """Draw SR, GR, ER, TrainR and TestR over the revisions up to head; None before any edit."""
    lines = {name: dots for name in DRAWN if (dots := _rates(report.points, name))}
    last_place = lanes.last_place(report)
    if not last_place or not (lines or report.branches):
        return None
    values = [y for dots in lines.values() for _, y in dots]
    is_flat = set(values) <= {1.0}
    lowest = max(values, default=1.0) - SPAN_MIN
    y = axes.around(values, at_least=(lowest, 1.0), ticks=1 if is_flat else 5)
    flags = [Flag(mark.place, mark.kind, _said(mark)) for mark in report.marks]
    dates = _dates(report.way)

    def chart(size: _ChartSize) -> Chart:
        return Chart(
            label="Metrics over the revisions from base to head",
            x_label=X_LABEL,
            y_label="share" if y.low <= 0 else f"share; the axis begins at {y.text(y.low)}",
            x=axes.counting(last_place, size.x_ticks),
            y=y,
            series=[Series(name, DRAWN[name], dots, WIDTHS[name]) for name, dots in lines.items()],
            flags=flags,
            lanes=lanes.lanes(report),
            under_ticks=lambda place: dates.get(int(place), ""),
            told=rate,
            places=_places(report.way),
        )

    legend = _legend(
        [
            (f"{NAMES[name]} ({name})", DRAWN[name], rate(dots[-1][1]))
            for name, dots in lines.items()
        ],
        flags,
    )
    return element("figure", legend, *_both(chart, FLAT if is_flat else None))


def durations(times: Sequence[StepTime], revisions: int) -> Markup | None:
    """Draw the seconds of each step for edit, new probes and re-check; None if no step has any."""
    lines = {
        "edit": [(float(t.place), t.edit_s) for t in times if t.edit_s is not None],
        "new probes": [(float(t.place), t.probe_s) for t in times if t.probe_s is not None],
        "re-check": [(float(t.place), t.recheck_s) for t in times if t.recheck_s is not None],
    }
    series = [Series(name, TIMED[name], dots) for name, dots in lines.items() if dots]
    if not series:
        return None
    y = axes.logarithmic((y for line in series for _, y in line.dots), least=TIME_MIN_S)

    def chart(size: _ChartSize) -> Chart:
        return Chart(
            label="Time of each step",
            x_label=X_LABEL,
            y_label="time of a step; each line is ten times the one below",
            x=axes.counting(revisions, size.x_ticks),
            y=y,
            series=series,
            told=seconds,
        )

    return element("figure", _legend([(s.name, s.style, "") for s in series], ()), *_both(chart))


def _dates(way: Sequence[Stop]) -> dict[int, str]:
    """Return what stands below each place: the day of its measurement, or the time of day if all
    were measured on one day."""
    times = {stop.place: stop.at for stop in way if stop.at is not None}
    days = {at[:10] for at in times.values()}
    cut = slice(11, 16) if len(days) == 1 else slice(0, 10)
    return {place: one_line(at[cut]) for place, at in times.items()}


def _places(way: Sequence[Stop]) -> Callable[[float], str]:
    """Return a function that names a place by its entry, date and editors."""
    stops = {stop.place: stop for stop in way}

    def name(place: float) -> str:
        stop = stops.get(int(place))
        if stop is None:
            return f"{place:,.0f}"
        parts = [entry(stop.seq), *stop.editors, *([moment(stop.at)] if stop.at else [])]
        return f"{place:,.0f} ({', '.join(parts)})"

    return name


def _both(chart: Callable[[_ChartSize], Chart], height: int | None = None) -> Iterator[Markup]:
    """Yield the chart for wide and for narrow windows; the page shows one of them."""
    for name, size in _SIZES.items():
        yield element("div", draw(chart(size), size.width, height or size.height), class_=name)


def _rates(points: Sequence[Point], name: str) -> list[Dot]:
    values = ((point.place, getattr(point.rates, name)) for point in points)
    return [(float(place), float(value)) for place, value in values if value is not None]


def _said(mark: BranchMark) -> str:
    if mark.kind == operations.ROLLBACK:
        origin = "" if mark.left is None else f" from @{mark.left}"
        return f"@{mark.seq}: rolled back{origin} to here"
    return f"@{mark.seq}: reverted {', '.join(identity[:12] for identity in mark.requests)}"


def _legend(lines: Sequence[tuple[str, str, str]], flags: Sequence[Flag]) -> Markup:
    """Return a list of names, colours and values at head."""
    kinds = dict.fromkeys(flag.style for flag in flags)
    return element(
        "ul",
        *(
            element("li", element("span", class_=f"swatch {style}"), name, element("b", value))
            for name, style, value in lines
        ),
        *(element("li", element("span", class_=f"peak {kind}"), kind) for kind in kinds),
        class_="legend",
    )


def swatch(name: str) -> Markup:
    """Return the colour of a metric that is drawn, or nothing."""
    return element("span", class_=f"swatch {DRAWN[name]}") if name in DRAWN else join()
