"""The way from base to head, read once: each revision with its ledger's record and its outcomes.

Everything else in this package is a fold over it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from continual.recheck.retention import APPLIED, Outcome, outcomes_of, reverted_later
from store import Revision, Store


@dataclass(frozen=True)
class Visit:
    """One revision of the lineage."""

    place: int  # steps from base
    revision: Revision
    ledger: Mapping[str, Any]  # empty where the revision was not re-checked
    outcomes: tuple[Outcome, ...]
    reverted: frozenset[str]  # requests that a later revision takes out

    @property
    def seq(self) -> int:
        """The revision's number in the journal."""
        return self.revision.seq

    @property
    def at(self) -> str | None:
        """The time of its measurement, ISO 8601; None if it was not re-checked."""
        return str(self.ledger["at"]) if "at" in self.ledger else None

    @property
    def editors(self) -> tuple[str, ...]:
        """The editors that made its edits."""
        return tuple(dict.fromkeys(outcome.editor or "" for outcome in self.applied))

    @property
    def standing(self) -> list[Outcome]:
        """The outcomes that no later revision takes back."""
        return [outcome for outcome in self.outcomes if outcome.id not in self.reverted]

    @property
    def applied(self) -> list[Outcome]:
        """The edits that the step made, repairs included, whatever happened to them later."""
        return [outcome for outcome in self.outcomes if outcome.outcome == APPLIED]

    def seconds(self, name: str) -> float | None:
        """Return a duration in the ledger (edit_s, probe_s, recheck_s); older records have none."""
        value = self.ledger.get(name)
        return float(value) if isinstance(value, int | float) else None


def walk(store: Store, lineage: Sequence[Revision]) -> list[Visit]:
    """Return a visit of every revision of a lineage, base first."""
    return [
        visit_of(store, place, revision, removals)
        for place, (revision, removals) in enumerate(
            zip(lineage, reverted_later(lineage), strict=True)
        )
    ]


def visit_of(
    store: Store, place: int, revision: Revision, removals: frozenset[str] = frozenset()
) -> Visit:
    """Return the visit of a revision; `removals` are the requests that a later one takes out."""
    ledger = store.ledger(revision.seq) or {}
    return Visit(place, revision, ledger, tuple(outcomes_of(revision.body)), removals)
