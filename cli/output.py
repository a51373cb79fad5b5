"""The one way to the terminal: results to standard output, all else to standard error.

Knows JSON Lines, plain text for files and pipes, and colour for terminals. A command hands over a
record and, for people, how it reads; which of the two is printed is decided here.
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

DASH = "–"  # for what was not measured
TARGET_WIDTH = 22  # of the column of targets, in a table that gives way
ID_DIGITS = 12  # of an id or a fingerprint, where people read it
_PLAIN_WIDTH = 10_000  # no line of a file is folded


class Output:
    """What a command prints to."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def record(self, record: Mapping[str, Any]) -> None:
        """One line of JSON, with `--json`; else nothing."""
        if self.as_json:
            print(
                json.dumps(record, ensure_ascii=not _has_all(sys.stdout), allow_nan=False),
                flush=True,
            )

    def text(self, *parts: RenderableType) -> None:
        """Lines and tables for people; nothing with `--json`."""
        if not self.as_json:
            for part in parts:
                self._print(part)

    def result(self, record: Mapping[str, Any], *parts: RenderableType) -> None:
        """A result, as JSON or as it reads."""
        self.record(record)
        self.text(*parts)

    def verbatim(self, record: Mapping[str, Any], text: str) -> None:
        """A result that people copy: its lines are folded on no terminal."""
        self.record(record)
        if not self.as_json:
            print(text, flush=True)

    def note(self, text: str) -> None:
        """Something beside the result."""
        self.errors.print(text, style="dim")

    def warn(self, warnings: Iterable[str]) -> None:
        """What a person should know before going on, loudly."""
        for text in warnings:
            self.errors.print(f"warning: {text}", style="bold yellow")

    def _print(self, part: RenderableType) -> None:
        """A table is padded to its width, of which only a terminal should see anything."""
        if self.console.is_terminal:
            self.console.print(part)
            return
        with self.console.capture() as printed:
            self.console.print(part)
        for line in printed.get().splitlines():
            print(line.rstrip(), flush=True)

    @property
    def is_live(self) -> bool:
        """Whether someone looks on who can be shown progress."""
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
    """Whether every character can be written there."""
    return (file.encoding or "").lower().replace("-", "").replace("_", "") in ("utf8", "utf8sig")


def replace_missing() -> None:
    """Let characters that standard output or standard error lack be replaced, and not fail."""
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper) and not _has_all(file):
            file.reconfigure(errors="replace")


def _console(file: TextIO) -> Console:
    """A console that prints text as it is, and folds lines only on a terminal."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    width = None if file.isatty() else _PLAIN_WIDTH
    return Plain(file=file, width=width, markup=False, emoji=False, highlight=False)


# -- how things read

WATCHED = ("Watch", "Neighbours", "Continuation", "Fluency")
"""The metrics of the watch set."""


def columns(
    names: Sequence[str], rows: Iterable[Iterable[object]], right: str = "", shrinks: str = ""
) -> Table:
    """A table without lines. The columns named in `right` (space between) are aligned there; those
    named in `shrinks` are cut where the terminal is narrow, the last column at TARGET_WIDTH where
    it has no name, and no other is."""
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
    """How wide a column has to be, and may be, where some of its table give way."""
    from rich.cells import cell_len

    if not shrinking or name in shrinking:
        return {"no_wrap": not shrinking}
    widest = max(map(cell_len, texts))
    if name:
        return {"no_wrap": True, "min_width": widest}
    return {"no_wrap": True, "min_width": min(widest, TARGET_WIDTH), "max_width": TARGET_WIDTH}


def day(moment: object) -> str:
    """The date of a time in ISO 8601; a dash for none."""
    return str(moment)[:10] if moment else DASH


def one_line(text: str) -> str:
    """The text on one line: what would move a terminal's cursor is spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short(identity: str) -> str:
    """The start of an id or a fingerprint."""
    return identity[:ID_DIGITS]


def rate(value: float | None) -> str:
    """A rate with three decimals."""
    return DASH if value is None else f"{value:.3f}"


def rates(record: Mapping[str, Any], *names: str) -> str:
    """Rates by name, in a line."""
    return "  ".join(f"{name} {rate(record[name])}" for name in names)


def size(count: int) -> str:
    """A number of bytes."""
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def counted(count: int, noun: str) -> str:
    """`1 request`, `2 requests`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
