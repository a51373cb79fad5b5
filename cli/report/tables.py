"""Tables of the page: the first rows of possibly thousands, and the number of the rest.

On a narrow window each row is a card, in which every value has its column's name before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from cli.report.markup import Markup, element, join
from cli.report.texts import told

ROWS = 20
OPEN, FOLD = 30, 100  # rows of a table without folds, and of a fold
NUMBER, TEXT, LONG, NAME = "num", "text", "text long", "name"  # the kinds of column

TableRow = TypeVar("TableRow")
Cell = Markup | str


@dataclass(frozen=True)
class ReportColumn(Generic[TableRow]):
    """A column: its name, its kind, and the function that gives the cell of a row."""

    name: str
    kind: str
    cell: Callable[[TableRow], Cell]


def table(
    columns: Sequence[ReportColumn[TableRow]], rows: Sequence[TableRow], most: int = ROWS
) -> Markup:
    """Return a table of the first `most` rows."""
    body = (_row(columns, row) for row in islice(rows, most))
    return join(_framed(columns, body), _more(len(rows) - most))


def grouped(
    columns: Sequence[ReportColumn[TableRow]],
    rows: Sequence[TableRow],
    name: Callable[[TableRow], str],
) -> Markup:
    """Return a table of the first ROWS rows, those of the same name under it."""
    groups: dict[str, list[TableRow]] = {}
    for row in rows:
        groups.setdefault(name(row), []).append(row)
    body: list[Markup] = []
    room = ROWS
    for title, members in groups.items():
        if room > 0:
            cell = element("td", told(title), " ", _count(len(members)), colspan=len(columns))
            body.append(element("tr", cell, class_="group"))
            body += [_row(columns, row) for row in members[:room]]
            room -= len(members)
    return join(_framed(columns, body), _more(len(rows) - ROWS))


def folded(
    columns: Sequence[ReportColumn[TableRow]],
    rows: Sequence[TableRow],
    name: Callable[[Sequence[TableRow]], str],
) -> Markup:
    """Return a table of all rows: if they are more than OPEN, the first ROWS are shown and the
    others folded by FOLD. `name` gives the title of a fold."""
    open_count = ROWS if len(rows) > OPEN else OPEN
    beginning = _framed(columns, (_row(columns, row) for row in rows[:open_count]))
    rest = [rows[start : start + FOLD] for start in range(open_count, len(rows), FOLD)]
    folds = (
        element(
            "details",
            element("summary", name(part)),
            _framed(columns, (_row(columns, row) for row in part)),
            class_="part",
        )
        for part in rest
    )
    return join(beginning, *folds)


def _row(columns: Sequence[ReportColumn[TableRow]], row: TableRow) -> Markup:
    return element(
        "tr", *(element("td", c.cell(row), class_=c.kind, data_label=c.name) for c in columns)
    )


def _framed(columns: Sequence[ReportColumn[TableRow]], body: Iterable[Markup]) -> Markup:
    head = element("tr", *(element("th", c.name, class_=c.kind) for c in columns))
    grid = element("table", element("thead", head), element("tbody", *body), class_="cards")
    return element("div", grid, class_="scroll")


def _count(number: int) -> Markup:
    return element("span", f"{number:,}", class_="count")


def titled(title: str, rows: Sequence[TableRow], body: Markup) -> Markup:
    """Return a table `body` under its title with the number of its rows."""
    heading = element("h3", title, " ", _count(len(rows)), id=anchor(title))
    return join(heading, body)


def anchor(title: str) -> str:
    """Return the name by which a link leads to a title."""
    return title.lower().replace(" ", "-")


def pairs(rows: Iterable[tuple[Cell, Cell]]) -> Markup:
    """Return a table of names and values."""
    body = (
        element("tr", element("td", name, class_=NAME), element("td", value, class_=TEXT))
        for name, value in rows
    )
    return element("div", element("table", element("tbody", *body)), class_="scroll pairs")


def _more(left: int) -> Markup | None:
    if left <= 0:
        return None
    command = element("code", "cedit report --json")
    return element("p", f"and {left:,} more: ", command, " has all of them", class_="more")


def heading(title: str, rows: int | None = None) -> Markup:
    """Return a part's heading, with the number of its rows."""
    number = None if rows is None else element("span", f" {rows:,}", class_="count")
    return element("h2", title, number, id=anchor(title))


def note(text: str) -> Markup | None:
    """Return a remark below a heading; None for an empty one."""
    return element("p", text, class_="note") if text else None
