"""Lines over revisions, as SVG of our own.

A `Chart` names lines, axes and labels; `draw` gives it a size. Colours are the page's: an element
has the class of its series. Hovering shows the values: of every revision where there is room for
that, else of some tens of revisions together, with their lowest and highest value. Below the axis
a chart may have lanes: bars and marks along the same x.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from cli.report.axes import ChartAxis, LogAxis
from cli.report.markup import Markup, element, join
from cli.report.thinning import Dot, thin

BANDS = 240  # strips to hover over, at most
TICK_WIDTH = 90  # pixels that a number below the chart needs
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 22, 44  # around the lines, in pixels
UNDER_TICK = 15  # pixels of a second line below the ticks
LANE, BAR = 21, 13  # heights of a lane and of a bar in it, in pixels
LETTER = 6.4  # pixels of a letter of 12 pixels, about


@dataclass(frozen=True)
class Series:
    """One line."""

    name: str
    style: str  # the class that has its colour
    dots: Sequence[Dot]  # in the order of x
    width: float = (
        1.75  # pixels; wider lines are drawn first, so that narrower ones are seen on them
    )


@dataclass(frozen=True)
class Flag:
    """An event at an x."""

    x: float
    style: str
    text: str


@dataclass(frozen=True)
class Bar:
    """A stretch of a lane, or a mark on it where `start` is `end`."""

    start: float
    end: float
    style: str
    label: str  # written where there is room
    text: str  # when hovered over
    is_beside: bool = False  # the label may stand beside it


@dataclass(frozen=True)
class Lane:
    """A row of bars below the axis, in the order of their starts."""

    name: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Chart:
    """Lines that share their axes."""

    label: str  # for people who do not see the chart
    x_label: str
    y_label: str
    x: ChartAxis
    y: ChartAxis | LogAxis
    series: Sequence[Series]
    flags: Sequence[Flag] = ()
    lanes: Sequence[Lane] = ()
    under_ticks: Callable[[float], str] | None = None  # a second line below a tick of x
    places: Callable[[float], str] = "{:,.0f}".format  # an x, when hovered over
    told: Callable[[float], str] = field(default="{:.4f}".format)  # a value, when hovered over


def draw(chart: Chart, width: int, height: int) -> Markup:
    """Return the chart as an SVG element of this size in pixels, lanes not counted; it scales with
    its container."""
    return _Drawing(chart, width, height).svg()


@dataclass(frozen=True)
class _Drawing:
    """A chart with a size. The y of pixels grows downward."""

    chart: Chart
    width: int
    height: int

    def svg(self) -> Markup:
        return element(
            "svg",
            element("title", self.chart.label),
            *self._grid(),
            *self._numbers(),
            *self._labels(),
            *self._lines(),
            *self._flags(),
            *self._bands(),
            *self._lanes(),
            xmlns="http://www.w3.org/2000/svg",
            view_box=f"0 0 {self.width} {self._whole_height}",
            role="img",
            aria_label=self.chart.label,
        )

    # -- places

    @property
    def _right(self) -> float:
        return self.width - RIGHT

    @property
    def _bottom(self) -> float:
        return self.height - BOTTOM

    @property
    def _lanes_top(self) -> float:
        """The y where lanes begin."""
        return self.height + (UNDER_TICK if self.chart.under_ticks else 0)

    @property
    def _whole_height(self) -> float:
        return self._lanes_top + LANE * len(self.chart.lanes)

    def _x(self, value: float) -> float:
        return round(LEFT + self.chart.x.share(value) * (self._right - LEFT), 1)

    def _y(self, value: float) -> float:
        return round(self._bottom - self.chart.y.share(value) * (self._bottom - TOP), 1)

    @property
    def _columns(self) -> int:
        return int(self._right - LEFT)

    # -- parts of the drawing

    def _grid(self) -> Iterator[Markup]:
        for value in self.chart.y.ticks:
            y = self._y(value)
            yield element("line", class_="grid", x1=LEFT, x2=self._right, y1=y, y2=y)
        yield element(
            "line", class_="axis", x1=LEFT, x2=self._right, y1=self._bottom, y2=self._bottom
        )

    def _numbers(self) -> Iterator[Markup]:
        for value in self.chart.y.ticks:
            text = self.chart.y.text(value)
            yield element(
                "text", text, class_="tick end", x=LEFT - 8, y=self._y(value), dy="0.32em"
            )
        for value in self.chart.x.ticks:
            x, y = self._x(value), self._bottom + 17
            yield element("text", f"{value:,.0f}", class_="tick middle", x=x, y=y)
            if self.chart.under_ticks is not None:
                under = self.chart.under_ticks(value)
                y += UNDER_TICK
                yield element("text", under, class_="tick middle faint", x=x, y=y)

    def _labels(self) -> Iterator[Markup]:
        middle = (LEFT + self._right) / 2
        y = self._lanes_top - 7
        yield element("text", self.chart.x_label, class_="label middle", x=middle, y=y)
        yield element("text", self.chart.y_label, class_="label", x=4, y=11)

    def _lines(self) -> Iterator[Markup]:
        for series in sorted(self.chart.series, key=lambda series: -series.width):
            dots = [(self._x(x), self._y(y)) for x, y in thin(series.dots, self._columns)]
            if len(dots) == 1:
                ((x, y),) = dots
                yield element("circle", class_=f"dot {series.style}", cx=x, cy=y, r=3)
            elif dots:
                path = " ".join(f"{x:g},{y:g}" for x, y in dots)
                yield element(
                    "polyline",
                    class_=f"line {series.style}",
                    points=path,
                    stroke_width=series.width,
                )

    def _flags(self) -> Iterator[Markup]:
        """Yield one flag for each column of pixels, with the texts of all flags there."""
        columns: dict[int, list[Flag]] = {}
        for flag in self.chart.flags:
            columns.setdefault(int(self._x(flag.x)), []).append(flag)
        for flags in columns.values():
            x = self._x(flags[0].x)
            yield element(
                "g",
                element("title", _several([flag.text for flag in flags])),
                element("line", class_="stem", x1=x, x2=x, y1=TOP - 6, y2=self._bottom),
                element("path", d=f"M{x:g} {TOP - 4}l-4.5 -8h9z"),
                class_=f"flag {flags[0].style}",
            )

    def _lanes(self) -> Iterator[Markup]:
        for row, lane in enumerate(self.chart.lanes):
            top = self._lanes_top + row * LANE + (LANE - BAR) / 2
            base = top + BAR - 2.5  # of the letters
            yield element("text", lane.name, class_="label end", x=LEFT - 8, y=base)
            end = float(LEFT)  # the x up to which the lane has letters
            for bar in lane.bars:
                yield self._bar(bar, top)
                if (place := self._label_place(bar, end)) is not None:
                    x, end = place
                    yield element("text", bar.label, class_=f"lane {bar.style}", x=x, y=base)

    def _bar(self, bar: Bar, top: float) -> Markup:
        start, end = self._x(bar.start), self._x(bar.end)
        is_mark = bar.start == bar.end
        return element(
            "rect",
            element("title", bar.text),
            class_=f"bar {bar.style}",
            x=start - 2 if is_mark else start,
            y=round(top, 1),
            width=4 if is_mark else max(1.0, round(end - start, 1)),
            height=BAR,
            rx=2,
        )

    def _label_place(self, bar: Bar, taken: float) -> tuple[float, float] | None:
        """Return the x of a bar's label and of its end; None where it has no room. The label of a
        bar stands in it, or beside it as that of a mark."""
        start, end = self._x(bar.start), self._x(bar.end)
        length = LETTER * len(bar.label)
        if bar.start != bar.end and length + 10 <= end - start:
            return start + 5, end
        for x in (end + 6, start - 6 - length) if bar.is_beside else ():
            if taken <= x and x + length <= self.width:
                return round(x, 1), max(x + length, end + 6)
        return None

    # -- hovering

    def _bands(self) -> Iterator[Markup]:
        """Yield strips over the whole height, each for one x or some neighbouring ones."""
        places = sorted({x for series in self.chart.series for x, _ in series.dots})
        size = -(-len(places) // BANDS) or 1
        groups = [places[start : start + size] for start in range(0, len(places), size)]
        edges = self._edges(groups)
        for group, (left, right) in zip(groups, edges, strict=True):
            yield element(
                "rect",
                element("title", join(self._told(group[0], group[-1]))),
                class_="band",
                x=left,
                y=TOP,
                width=round(right - left, 1),
                height=round(self._bottom - TOP, 1),
            )

    def _edges(self, groups: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
        """Return the left and right edge of each strip, half-way between neighbours."""
        between = [
            round((self._x(group[-1]) + self._x(successor[0])) / 2, 1)
            for group, successor in pairwise(groups)
        ]
        return list(zip([LEFT, *between], [*between, self._right], strict=True)) if groups else []

    def _told(self, first: float, last: float) -> str:
        """Return the values of all series between two x, a line each."""
        name = self.chart.places
        where = name(first) if first == last else f"{name(first)}–{name(last)}"
        lines = [f"{self.chart.x_label} {where}"]
        for series in self.chart.series:
            start = bisect_left(series.dots, first, key=lambda dot: dot[0])
            end = bisect_right(series.dots, last, key=lambda dot: dot[0])
            values = [y for _, y in series.dots[start:end]]
            if values:
                low, high = self.chart.told(min(values)), self.chart.told(max(values))
                lines.append(f"{series.name} {low if low == high else f'{low} to {high}'}")
        return "\n".join(lines)


def _several(texts: Sequence[str], most: int = 5) -> str:
    """Join the first `most` texts, a line each, and say how many more there are."""
    remainder = [f"and {len(texts) - most:,} more"] if len(texts) > most else []
    return "\n".join([*texts[:most], *remainder])
