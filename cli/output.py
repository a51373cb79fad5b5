"""The one way to the terminal: results to standard output, all else to standard error.

Knows JSON Lines, plain text for files and pipes, and colour for terminals. A command hands over a
record and a text for people; this module decides which of the two to print.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

DASH = "–"  # stands for a missing measurement
TARGET_WIDTH = 22  # of the column of targets, in a table that shrinks
ID_DIGITS = 12  # of an id or a fingerprint, where people read it
_PLAIN_WIDTH = 10_000  # no line of a file is folded


class Output:
    """The output of a command: JSON Lines or text."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def record(self, record: Mapping[str, Any]) -> None:
        """Print one line of JSON with `--json`, else nothing."""
        if self.as_json:
            print(
                json.dumps(record, ensure_ascii=not _has_all(sys.stdout), allow_nan=False),
                flush=True,
            )

    def text(self, *parts: RenderableType) -> None:
        """Print lines and tables for people; nothing with `--json`."""
        if not self.as_json:
            for part in parts:
                self._print(part)

    def result(self, record: Mapping[str, Any], *parts: RenderableType) -> None:
        """Print a result, as JSON or as text."""
        self.record(record)
        self.text(*parts)

    def verbatim(self, record: Mapping[str, Any], text: str) -> None:
        """Print a result that people copy: no terminal folds its lines."""
        self.record(record)
        if not self.as_json:
            print(text, flush=True)

    def note(self, text: str) -> None:
        """Print a note beside the result, on standard error."""
        self.errors.print(text, style="dim")

    def warn(self, warnings: Iterable[str]) -> None:
        """Print warnings for a person to read before going on, on standard error."""
        for text in warnings:
            self.errors.print(f"warning: {text}", style="bold yellow")

    def _print(self, part: RenderableType) -> None:
        """Print a text or a table, without trailing blanks unless on a terminal."""
        if self.console.is_terminal:
            self.console.print(part)
            return
        with self.console.capture() as capture:
            self.console.print(part)
        for line in capture.get().splitlines():
            print(line.rstrip(), flush=True)

    @property
    def is_live(self) -> bool:
        """True if a person is there to see progress."""
        return not self.as_json and sys.stderr.isatty()

    @cached_property
    def console(self) -> Console:
        """Standard output."""
        return _console(sys.stdout)

    @cached_property
    def errors(self) -> Console:
        """Standard error."""
        return _console(sys.stderr)


def _has_all(file: TextIO) -> bool:
    """Tell whether a file can take every character."""
    return (file.encoding or "").lower().replace("-", "").replace("_", "") in ("utf8", "utf8sig")


def replace_missing() -> None:
    """Let characters that standard output or standard error lack be replaced, and not fail."""
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper) and not _has_all(file):
            file.reconfigure(errors="replace")


def _console(file: TextIO) -> Console:
    """Make a console that prints text as it is, and folds lines only on a terminal."""
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    width = None if file.isatty() else _PLAIN_WIDTH
    return PlainConsole(file=file, width=width, markup=False, emoji=False, highlight=False)


# -- texts for people

WATCHED = ("Watch", "Neighbours", "Continuation", "Fluency")
"""The metrics of the watch set."""


def columns(
    names: Sequence[str], rows: Iterable[Iterable[object]], right: str = "", shrinks: str = ""
) -> Table:
    """Make a table without lines. The columns named in `right` (space between) are aligned right.
    On a narrow terminal the columns named in `shrinks` are cut, a column without a name at
    TARGET_WIDTH, and no other."""
    from rich.table import Table
    from rich.text import Text

    cells = [[one_line(str(cell)) for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(names):
        table.add_column(
            name,
            justify="right" if name in right.split() else "left",
            **_widths(name, [name, *(row[place] for row in cells)], shrinks.split()),
        )
    for row in cells:
        table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
    return table


def _widths(name: str, texts: Iterable[str], shrinking: Sequence[str]) -> dict[str, Any]:
    """Return the least and the largest width of a column, in a table where some columns shrink."""
    from rich.cells import cell_len

    if not shrinking or name in shrinking:
        return {"no_wrap": not shrinking}
    widest = max(map(cell_len, texts))
    if name:
        return {"no_wrap": True, "min_width": widest}
    return {"no_wrap": True, "min_width": min(widest, TARGET_WIDTH), "max_width": TARGET_WIDTH}


def day(moment: object) -> str:
    """Return the date of a time in ISO 8601; a dash for none."""
    return str(moment)[:10] if moment else DASH


def one_line(text: str) -> str:
    """Return the text on one line: characters that move a terminal's cursor are spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short(identity: str) -> str:
    """Return the start of an id or a fingerprint."""
    return identity[:ID_DIGITS]


def rate(value: float | None) -> str:
    """Return a rate with three decimals; a dash for none."""
    return DASH if value is None else f"{value:.3f}"


def rates(record: Mapping[str, Any], *names: str) -> str:
    """Return rates by name, in a line."""
    return "  ".join(f"{name} {rate(record[name])}" for name in names)


def size(count: int) -> str:
    """Return a number of bytes with its unit."""
    amount, unit = float(count), "B"
    for next_unit in ("KiB", "MiB", "GiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, next_unit
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: `1 request`, `2 requests`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
