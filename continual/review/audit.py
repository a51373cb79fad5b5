"""The acts of administrators, beside the queue in the store: who did what, when, to which thing.

Decisions on corrections are events of their items; everything else that a server lets people do to
a store is noted here: head moved, tags, tokens, webhooks, repairs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from continual.review.items import WHO_CHARACTERS_MAX, WHY_CHARACTERS_MAX, now
from store import Store

PREFIX = "audit/"
_DIGITS = 12


@dataclass(frozen=True)
class AuditEntry:
    """An act."""

    at: str  # ISO 8601
    who: str
    act: str
    about: str = ""


class Audit:
    """The acts on a store; any thread may note one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turn = threading.Lock()
        self._count = sum(1 for _ in store.queue_entries(PREFIX))

    def note(self, who: str, act: str, about: str = "") -> None:
        """Note an act, durably."""
        entry = AuditEntry(now(), who[:WHO_CHARACTERS_MAX], act, about[:WHY_CHARACTERS_MAX])
        with self._turn:
            self._store.record_queue({f"{PREFIX}{self._count + 1:0{_DIGITS}}": asdict(entry)})
            self._count += 1

    def latest(self, count: int) -> list[AuditEntry]:
        """Return the latest acts, the last one first."""
        return list(self._read())[::-1][:count]

    def _read(self) -> Iterator[AuditEntry]:
        for _, record in self._store.queue_entries(PREFIX):
            fields = {name: str(record.get(name, "")) for name in ("at", "who", "act", "about")}
            yield AuditEntry(**fields)
