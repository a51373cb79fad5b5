"""Conflicts: corrections in force on the same fact or prompt with another answer."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from continual.history.inspection import retained_at
from continual.prompts import shown_prompt
from continual.recheck.retention import Retention
from continual.requests import Request
from store import Store


@dataclass(frozen=True)
class Conflict:
    """A correction in force that a new one would supersede."""

    request: str
    prompt: str
    target_new: str


class InForce:
    """The corrections in force at head, read once for a head; any thread may ask."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turn = threading.Lock()
        self._read: tuple[str, Retention] | None = None

    @property
    def retention(self) -> Retention:
        """The retention set at head."""
        with self._turn:
            head = self._store.head
            if self._read is None or self._read[0] != head.id:
                self._read = (head.id, retained_at(self._store, head))
            return self._read[1]

    def conflicts(self, request: Request) -> list[Conflict]:
        """Return the corrections that a request would supersede."""
        retention = self.retention
        others = [retention.requests[i] for i in retention.competitors(request)]
        return [
            Conflict(o.request.id, shown_prompt(o.request.to_json()), o.request.target_new)
            for o in others
            if o.applied
        ]
