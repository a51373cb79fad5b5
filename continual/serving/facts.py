"""The facts that a server tells of a history: metrics, corrections, sizes; read once for a head.

Knows how long facts hold; leaves reading them to `reporting`.
"""

from __future__ import annotations

import threading

from continual.reporting import HistoryReport, report_on
from store import Store


class Facts:
    """The report of a store at its head; any thread may read it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turn = threading.Lock()
        self._report: tuple[tuple[str, int], HistoryReport] | None = None

    @property
    def report(self) -> HistoryReport:
        """The report of the present head, made anew when the history has moved."""
        with self._turn:
            stand = (self._store.head_id, self._store.length)
            if self._report is None or self._report[0] != stand:
                self._report = (stand, report_on(self._store))
            return self._report[1]

    @property
    def journal_bytes(self) -> int:
        """The size of the journal's file now."""
        return (self._store.path / "journal" / "data.mdb").stat().st_size
