"""The two charts of the page: the metrics, and the time of each step, over the revisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cli.report import axes
from cli.report.chart import Chart, Flag, Series, draw
from cli.report.markup import Markup, element, join
from cli.report.texts import rate, seconds
from cli.report.thinning import Dot
from continual.reporting import HistoryReport, Mark, Point, StepTime
from store import operations

DRAWN = {"SR": "sr", "GR": "gr", "ER": "er", "TrainR": "train", "TestR": "test"}
ABOVE = "ER"  # the line that is drawn over all others
TIMED = {"edit": "er", "new probes": "sr", "re-check": "gr"}
WIDE, NARROW = (940, 330), (400, 300)  # pixels
X_LABEL = "revision"
SPAN_MIN = 0.02  # of the rates' axis


@dataclass(frozen=True)
class _Size:
    width: int
    height: int
    x_ticks: int


_SIZES = {"wide": _Size(*WIDE, x_ticks=10), "narrow": _Size(*NARROW, x_ticks=4)}


def metrics(report: HistoryReport) -> Markup | None:
    """Draw SR, GR, ER, TrainR and TestR over the revisions up to head; None before any edit."""
    series = [
        Series(name, style, dots)
        for name, style in DRAWN.items()
        if (dots := _rates(report.points, name))
    ]
    if not report.title.revisions or not series:
        return None
    values = [y for line in series for _, y in line.dots]
    y = axes.around(values, at_least=(max(values) - SPAN_MIN, 1.0))
    flags = [Flag(mark.place, mark.kind, _said(mark)) for mark in report.marks]

    def chart(size: _Size) -> Chart:
        return Chart(
            label="Metrics over the revisions from base to head",
            x_label=X_LABEL,
            y_label="share",
            x=axes.counting(report.title.revisions, size.x_ticks),
            y=y,
            series=sorted(series, key=lambda line: line.name == ABOVE),
            flags=flags,
            told=rate,
        )

    legend = _legend([(line.name, line.style, rate(line.dots[-1][1])) for line in series], flags)
    return element("figure", legend, *_both(chart))


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
    largest = max(y for line in series for _, y in line.dots)
    unit, factor = ("s", 1.0) if largest >= 1 else ("ms", 1000.0)
    scaled = [
        Series(line.name, line.style, [(x, y * factor) for x, y in line.dots]) for line in series
    ]

    def chart(size: _Size) -> Chart:
        return Chart(
            label="Time of each step",
            x_label=X_LABEL,
            y_label=unit,
            x=axes.counting(revisions, size.x_ticks),
            y=axes.around((), at_least=(0.0, largest * factor or 1.0)),
            series=scaled,
            told=lambda value: seconds(value / factor),
        )

    return element("figure", _legend([(s.name, s.style, "") for s in series], ()), *_both(chart))


def _both(chart: Callable[[_Size], Chart]) -> Iterator[Markup]:
    """Yield the chart for wide and for narrow windows; the page shows one of them."""
    for name, size in _SIZES.items():
        yield element("div", draw(chart(size), size.width, size.height), class_=name)


def _rates(points: Sequence[Point], name: str) -> list[Dot]:
    values = ((point.place, getattr(point.rates, name)) for point in points)
    return [(float(place), float(value)) for place, value in values if value is not None]


def _said(mark: Mark) -> str:
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
