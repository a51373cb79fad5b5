"""The retention set: which requests the model answers for at a revision.

A fold over the revisions from base to head. Knows the requests in the bodies of revisions; knows no
model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from continual.recheck.metrics import Count
from continual.requests import Request
from store import Revision

APPLIED, FAILED, SKIPPED, REPEATED, SUPERSEDED = (
    "applied",
    "failed",
    "skipped",
    "repeated",
    "superseded",
)
ATTEMPTED = (APPLIED, FAILED)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one request in one step: an entry of a revision's body."""

    id: str
    outcome: str  # one of the words above
    editor: str | None = None
    attempt: int | None = None  # 1 for the first
    reason: str | None = None
    supersedes: tuple[str, ...] = ()
    expected: tuple[tuple[int, ...], ...] = ()  # answers to its locality prompts before the edit
    repair: bool = False
    neighbours: Mapping[str, Any] = field(default_factory=dict)  # see `watch.neighbours`
    notes: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the non-empty fields."""
        record = {
            "id": self.id,
            "outcome": self.outcome,
            "editor": self.editor,
            "attempt": self.attempt,
            "reason": self.reason,
            "supersedes": list(self.supersedes),
            "expected": [list(tokens) for tokens in self.expected],
            "repair": self.repair,
            "neighbours": dict(self.neighbours),
            **self.notes,
        }
        return {key: value for key, value in record.items() if value}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Outcome:
        """Read an entry back."""
        names = {field.name for field in fields(cls)} - {"notes"}
        return cls(
            id=record["id"],
            outcome=record["outcome"],
            editor=record.get("editor"),
            attempt=record.get("attempt"),
            reason=record.get("reason"),
            supersedes=tuple(record.get("supersedes", ())),
            expected=tuple(tuple(tokens) for tokens in record.get("expected", ())),
            repair=bool(record.get("repair", False)),
            neighbours=record.get("neighbours", {}),
            notes={key: value for key, value in record.items() if key not in names},
        )


@dataclass(frozen=True)
class Retained:
    """A request that counts, with the answers to its locality prompts from before its edit."""

    request: Request
    applied: bool
    expected: tuple[tuple[int, ...], ...]
    neighbours: Mapping[str, Any] = field(default_factory=dict)  # as its outcome has them


class Retention:
    """The attempted requests that no later request has superseded, in the order of attempts."""

    def __init__(self) -> None:
        self.requests: dict[str, Retained] = {}
        self.attempts = Count()  # SR
        self._by_key: dict[str, list[str]] = {}

    def __contains__(self, identity: object) -> bool:
        return identity in self.requests

    @property
    def applied(self) -> int:
        """The number of corrections in force."""
        return sum(retained.applied for retained in self.requests.values())

    def competitors(self, request: Request) -> list[str]:
        """Return the retained requests on the same fact or prompt with another target."""
        identities = dict.fromkeys(
            identity for key in _keys(request) for identity in self._by_key.get(key, ())
        )
        return [i for i in identities if self.requests[i].request.disagrees_with(request)]

    def take(self, outcome: Outcome, request: Request, *, is_reverted: bool = False) -> None:
        """Follow one entry of a revision's body. An entry reverted later counts as an attempt
        only."""
        if is_reverted:
            if outcome.outcome in ATTEMPTED and not outcome.repair:
                self.attempts += Count(int(outcome.outcome == APPLIED), 1)
            return
        for identity in outcome.supersedes:
            self._drop(identity)
        if outcome.outcome not in ATTEMPTED:
            return
        is_applied = outcome.outcome == APPLIED
        if not outcome.repair:
            self.attempts += Count(int(is_applied), 1)
        retained = self.requests.pop(outcome.id, None)  # a repair comes last again
        expected = retained.expected if retained else outcome.expected
        neighbours = outcome.neighbours or (retained.neighbours if retained else {})
        self.requests[outcome.id] = Retained(request, is_applied, expected, neighbours)
        if retained is None:
            for key in _keys(request):
                self._by_key.setdefault(key, []).append(outcome.id)

    def _drop(self, identity: str) -> None:
        retained = self.requests.pop(identity, None)
        if retained is not None:
            for key in _keys(retained.request):
                self._by_key[key].remove(identity)


def outcomes_of(body: Mapping[str, Any]) -> list[Outcome]:
    """Read the entries of a revision's body."""
    return [Outcome.from_json(record) for record in body.get("requests", ())]


def reverted_by(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the requests that a revision takes out of the history before it."""
    return tuple(body.get("reverted", ()))


def reverted_later(lineage: Sequence[Revision]) -> list[frozenset[str]]:
    """Return for each revision of a lineage the requests that a later one takes out."""
    removals: frozenset[str] = frozenset()
    stack: list[frozenset[str]] = []
    for revision in reversed(lineage):
        stack.append(removals)
        if identities := reverted_by(revision.body):
            removals = removals.union(identities)
    return stack[::-1]


def count_outcomes(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Count applied, skipped (repeats too), failed, superseded and attempted requests, as reports
    give them."""
    records: Sequence[Outcome] = [outcome for outcome in outcomes if not outcome.repair]
    counts = {
        name: sum(o.outcome == name for o in records) for name in (APPLIED, FAILED, SUPERSEDED)
    }
    return {
        "attempted": counts[APPLIED] + counts[FAILED],
        "applied": counts[APPLIED],
        "skipped": sum(o.outcome in (SKIPPED, REPEATED) for o in records),
        "superseded": counts[SUPERSEDED] + sum(len(o.supersedes) for o in records),
        "failed": counts[FAILED],
    }


def _keys(request: Request) -> tuple[str, ...]:
    return request.keys
