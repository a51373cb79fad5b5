"""Prints corrections as a table, or as JSON Lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cli.output import Output, columns, day

NAMES = ("id", "seq", "date", "state", "prompt", "")
ID_DIGITS = 8
NOT_IN_FORCE = "gone"


def show_corrections(
    out: Output, corrections: Sequence[Mapping[str, Any]], nothing: str = "No corrections."
) -> None:
    """Print a table of corrections, or a line for each with `--json`."""
    for correction in corrections:
        out.record(correction)
    if not corrections:
        out.text(nothing)
        return
    out.text(columns(NAMES, map(_row, corrections), right="seq", shrinks="prompt"))


def _row(correction: Mapping[str, Any]) -> Iterator[object]:
    yield correction["id"][:ID_DIGITS]
    yield f"@{correction['seq']}"
    yield day(correction["measured_at"])
    yield _state(correction)
    yield correction["prompt"]
    yield f"→ {correction['target_new']}"


def _state(correction: Mapping[str, Any]) -> str:
    """Name the state: applied, failed, or gone (rolled back, reverted or superseded)."""
    if correction["outcome"] == "failed":
        return "failed"
    return "applied" if correction["in_force"] else NOT_IN_FORCE
