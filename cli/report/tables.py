"""Tables of the page: the first rows of possibly thousands, and the number of the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from cli.report.markup import Markup, element, join

ROWS = 20
NUMBER, TEXT, NAME = "num", "text", "name"  # the kinds of column

Row = TypeVar("Row")
Cell = Markup | str


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column: its name, its kind, and the function that gives the cell of a row."""

    name: str
    kind: str
    cell: Callable[[Row], Cell]


def table(columns: Sequence[Column[Row]], rows: Sequence[Row], most: int = ROWS) -> Markup:
    """Return a table of the first `most` rows."""
    head = element("tr", *(element("th", c.name, class_=c.kind) for c in columns))
    body = (
        element("tr", *(element("td", c.cell(row), class_=c.kind) for c in columns))
        for row in islice(rows, most)
    )
    grid = element("table", element("thead", head), element("tbody", *body))
    return join(element("div", grid, class_="scroll"), _more(len(rows) - most))


def listed(
    title: str, columns: Sequence[Column[Row]], rows: Sequence[Row], none: str, most: int = ROWS
) -> Markup:
    """Return a table under its title with the number of its rows; a sentence without any."""
    heading = element("h3", title, " ", element("span", f"{len(rows):,}", class_="count"))
    return join(heading, table(columns, rows, most) if rows else element("p", none, class_="none"))


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
