"""The lanes below the metrics: tags, the editors of the steps, branches that were rolled back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from cli.report.chart import Bar, Lane
from cli.report.texts import entry, rate, span
from continual.reporting import Branch, HistoryReport, Stop
from store import operations

BRANCHES = 6  # lanes of branches, at most; the page lists more
HUES = 5  # classes hue1, hue2, … of the editors
BARS = 300  # along the whole x; shorter runs in a row are one bar


def lanes(report: HistoryReport) -> list[Lane]:
    """Return the lanes of a history; those without anything in them are left out."""
    hues = _hues(report)
    latest_branches = report.branches[-BRANCHES:]
    rows = [
        Lane("tags", list(_tags(report.way))),
        Lane("editor", list(_editors(report.way, hues, last_place(report)))),
        *(Lane("undone", [_branch(branch)]) for branch in reversed(latest_branches)),
    ]
    return [lane for lane in rows if lane.bars]


def last_place(report: HistoryReport) -> int:
    """Return the number of steps from base to head, or to the end of a branch that goes farther."""
    ends = [branch.place + branch.revisions for branch in report.branches[-BRANCHES:]]
    return max([report.title.revisions, *ends])


def _hues(report: HistoryReport) -> dict[tuple[str, ...], str]:
    """Return the class of each set of editors, those with most edits first."""
    return {
        tuple(sorted(cost.editors)): f"hue{min(number, HUES)}"
        for number, cost in enumerate(report.editors, start=1)
    }


def _tags(way: Sequence[Stop]) -> Iterator[Bar]:
    for stop in way:
        if stop.tags:
            names = ", ".join(stop.tags)
            text = f"{entry(stop.seq)} is tagged {names}"
            yield Bar(stop.place, stop.place, "tag", names, text, is_beside=True)


def _editors(way: Sequence[Stop], hues: dict[tuple[str, ...], str], last: int) -> Iterator[Bar]:
    """Yield a bar for each run of steps by the same editors."""
    runs = [list(run) for _, run in groupby((s for s in way if s.place), key=_maker)]
    for run in _joined(runs, last / BARS):
        makers = list(dict.fromkeys(_maker(stop) for stop in run))
        is_mixed = len(makers) > 1
        hue = "mixed" if is_mixed else hues.get(tuple(sorted(run[0].editors)), "mixed")
        label = "several" if is_mixed else makers[0]
        dates = span(run[0].at, run[-1].at)
        text = f"{_entries(run[0].seq, run[-1].seq)}: {', '.join(makers)}, {dates}"
        yield Bar(run[0].place - 1, run[-1].place, hue, label, text)


def _maker(stop: Stop) -> str:
    """Return the editors of a step, or its operation if it made no edit."""
    if stop.editors:
        return " + ".join(sorted(stop.editors))
    return "no edit" if stop.operation == operations.EDIT else stop.operation


def _joined(runs: Sequence[list[Stop]], least: float) -> Iterator[list[Stop]]:
    """Join runs in a row that are shorter than `least` steps, until they are as long."""
    pending: list[Stop] = []
    for run in runs:
        if len(run) < least:
            pending += run
            if len(pending) < least:
                continue
            run, pending = pending, []
        elif pending:
            yield pending
            pending = []
        yield run
    if pending:
        yield pending


def _branch(branch: Branch) -> Bar:
    entries = _entries(branch.first_seq, branch.last_seq)
    makers = " + ".join(branch.editors) or "no edit"
    lines = [
        f"{entries} was rolled back: {makers}, {span(branch.first_at, branch.last_at)}",
        f"{branch.applied:,} applied, {branch.failed:,} failed",
        f"earlier corrections right {rate(branch.rates.ER)}, test answers kept "
        f"{rate(branch.rates.TestR)}",
    ]
    end = branch.place + branch.revisions
    label = f"{entries}: {makers}"
    return Bar(branch.place, end, "left", label, "\n".join(lines), is_beside=True)


def _entries(first: int, last: int) -> str:
    return entry(first) if first == last else f"{entry(first)} to {entry(last)}"
