"""Follows corrections behind their edits: reads from the history at head how they fare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from continual.reporting import HistoryReport
from continual.review.items import QueueItem
from continual.review.queue import CorrectionQueue
from continual.review.states import (
    BROKEN,
    GONE,
    REPAIRED,
    REVERTED,
    STANDING,
    SUPERSEDED,
    VERIFIED,
)

HISTORY = "the history"
FROM_START = "skipped"  # a proof's outcome: the model was right by itself


def follow(queue: CorrectionQueue, report: HistoryReport) -> list[QueueItem]:
    """Set the state of every item that the model has, or had, by a report of head; return the items
    that changed."""
    fates = _Fates(report)
    items = queue.items(STANDING | GONE)
    return queue.put(list(_moved(items, fates)))


def _moved(items: list[QueueItem], fates: _Fates) -> Iterator[QueueItem]:
    for item in items:
        if item.request is None or item.proof.get("outcome") == FROM_START:
            continue
        state, why = fates.of(item.request.id, item.state)
        if state != item.state:
            yield item.moved(state, HISTORY, why)


class _Fates:
    """The standing of requests at head."""

    def __init__(self, report: HistoryReport) -> None:
        corrections = report.corrections
        self._in_force = {one.request.id for one in corrections.in_force}
        self._broken = {one.request.id: one.since_seq for one in corrections.broken}
        self._repaired = {one.request.id: one.mended_seq for one in corrections.repaired}
        self._superseded: Mapping[str, int] = {
            one.request.id: one.seq for one in corrections.superseded
        }
        self._reverted: Mapping[str, int] = {
            one.request.id: one.seq for one in corrections.reverted
        }

    def of(self, identity: str, state: str) -> tuple[str, str]:
        """Return the state of a request at head, and the reason for it."""
        if identity not in self._in_force:
            if identity in self._reverted:
                return REVERTED, f"taken out at @{self._reverted[identity]}"
            if identity in self._superseded:
                return SUPERSEDED, f"replaced at @{self._superseded[identity]}"
            return REVERTED, "head was moved to a state without it"
        if identity in self._broken:
            return BROKEN, f"answered wrongly since @{self._broken[identity]}"
        if state == BROKEN:
            seq = self._repaired.get(identity)
            return REPAIRED, "answered rightly again" + (f" since @{seq}" if seq else "")
        if state in GONE:
            return VERIFIED, "in force again"
        return state, ""
