"""Answers that went wrong, to be read: one table for each fault of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks import tables
from benchmarks.real_model.measures import UNEDITED, AnswerComparison
from benchmarks.real_model.questions import EDIT, PARAPHRASE
from benchmarks.real_model.runs import Finished
from benchmarks.tables import TextColumn

COLUMNS = (
    TextColumn("asked", "prompt"),
    TextColumn("base", "base"),
    TextColumn("behind the stream", "head"),
    TextColumn("target", "target"),
    TextColumn("record read", "record"),
)


def faults(targets: list[str]) -> Mapping[str, Callable[[AnswerComparison], bool]]:
    """Return tests for each fault of an answer, by the fault's name."""
    wrong = {
        f"{kind} not right": lambda c, kind=kind: c.question.kind == kind and not c.is_right
        for kind in (EDIT, PARAPHRASE)
    }
    changed = {
        f"{name} changed": lambda c, kind=kind: c.question.kind == kind and c.is_changed
        for kind, name in UNEDITED.items()
    }
    return {**wrong, **changed}


def show(name: str, finished: Finished, count: int) -> None:
    """Print the first `count` answers with each fault."""
    for fault, has_it in faults(finished.targets).items():
        found = [c for c in finished.comparisons if has_it(c)][:count]
        if found:
            tables.show(f"{name}: {fault}", COLUMNS, [_row(c) for c in found])


def _row(comparison: AnswerComparison) -> dict[str, str | None]:
    return {
        "prompt": comparison.question.prompt,
        "base": comparison.base.text.replace("\n", "⏎"),
        "head": comparison.head.text.replace("\n", "⏎"),
        "target": comparison.question.target,
        "record": comparison.record,
    }
