"""Shows a run: a JSON line for each step, a live line on a terminal, a few rows elsewhere.

Chooses the steps that are worth a row; takes the row's numbers from the steps' records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from cli.output import Output, rate, rates

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from continual.listening import Listener

RATES = ("SR", "GR", "ER", "TrainR", "TestR")
_HEADER = "".join(f"{name:>8}" for name in ("step", *RATES))
_ROUND = (1, 2, 5)


class StepView:
    """A view of a run that shows the records of steps as they come."""

    def __init__(
        self, out: Output, progress: Progress | None, done: int, total: int | None
    ) -> None:
        self._out, self._progress = out, progress
        self._rows: list[str] = []  # held back while the live line stands
        self._last: str | None = None  # the latest step's row, if it is not shown yet
        self._count = 0  # steps
        self._done = done  # records before this run
        self._read = 0  # in it
        if progress is not None:
            self._task = progress.add_task(
                "applying", completed=done, total=total, rates="", speed=""
            )

    def take(self, record: Mapping[str, Any]) -> None:
        """Show a step."""
        self._out.record(record)
        self._count += 1
        self._last = row(self._count, record)
        if is_round(self._count):
            self._flush()
        if self._progress is not None:
            self._advance(self._progress, record)

    def close(self) -> None:
        """Show the rows that are not shown yet."""
        self._flush()
        if self._progress is not None:
            for line in self._rows:
                self._out.text(line)

    def _flush(self) -> None:
        if self._last is None:
            return
        lines = [self._last] if self._rows else [_HEADER, self._last]
        self._rows += lines
        self._last = None
        if self._progress is None:
            for line in lines:
                self._out.text(line)

    def _advance(self, progress: Progress, record: Mapping[str, Any]) -> None:
        elapsed = progress.tasks[self._task].elapsed or 0.0
        self._read += record["requests"] + record["quarantined"]
        progress.update(
            self._task,
            completed=record["position"] or self._done + self._read,
            rates=rates(record, "SR", "ER", "TestR"),
            speed=f"{self._read / elapsed:.1f} records/s" if elapsed else "",
        )


@contextmanager
def watching(out: Output, done: int, total: int | None) -> Iterator[StepView]:
    """Watch a run over `total` records, if that is known, `done` of them before."""
    progress = _live_line(out) if out.is_live else None
    watch = StepView(out, progress, done, total)
    try:
        with progress or nullcontext():
            yield watch
    finally:
        watch.close()


@contextmanager
def writing(out: Output) -> Iterator[Callable[[int, int], None]]:
    """Show the number of general texts that the base has written, on a terminal."""
    if not out.is_live:
        yield lambda _done, _total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    parts = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    with Progress(*parts, console=out.errors, transient=True) as progress:
        task = progress.add_task("the base writes its general text", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def listening(out: Output) -> Iterator[Listener]:
    """Yield a listener for long work: notes go beside the result, progress to a terminal."""
    from continual.listening import Listener

    if not out.is_live:
        yield Listener(note=out.note)
        return
    from rich.progress import BarColumn, Progress, TextColumn

    parts = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}"),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*parts, console=out.errors, transient=True) as progress:

        def seen(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=None)
            progress.update(tasks[what], completed=done, total=total or None)
            if total and done >= total:
                progress.update(tasks[what], visible=False)

        yield Listener(note=out.note, progress=seen)


def row(count: int, record: Mapping[str, Any]) -> str:
    """Return a step's metrics as a row under the header."""
    return f"{count:>8}" + "".join(f"{rate(record[name]):>8}" for name in RATES)


def is_round(count: int) -> bool:
    """Tell whether a count is 1, 2, 5, 10, 20, 50, …"""
    while count % 10 == 0 and count:
        count //= 10
    return count in _ROUND


def _live_line(out: Output) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rates]}"),
        TextColumn("{task.fields[speed]}"),
        Remaining(),
        console=out.errors,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
