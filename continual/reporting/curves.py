"""The metrics along the way to head, and the places where the history went back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from continual.recheck.metrics import Rates
from continual.recheck.retention import reverted_by
from continual.reporting.walk import Visit
from store import Revision, operations


@dataclass(frozen=True)
class Point:
    """The metrics of one revision."""

    place: int  # steps from base
    seq: int
    rates: Rates


@dataclass(frozen=True)
class BranchMark:
    """A revision at which the history went back."""

    kind: str  # the operation: revert or rollback
    place: int  # steps from base; for a rollback, of the revision that it went to
    seq: int  # of the entry that records it
    requests: tuple[str, ...] = ()  # taken out by a revert
    left: int | None = None  # seq of the revision that a rollback left


@dataclass(frozen=True)
class Stop:
    """One revision on the way to head."""

    place: int  # steps from base
    seq: int
    operation: str
    editors: tuple[str, ...]  # of its edits
    at: str | None  # time of its measurement, ISO 8601
    tags: tuple[str, ...]


def way(visits: Sequence[Visit], tags: Mapping[str, str]) -> tuple[Stop, ...]:
    """Return every revision of a way, base first; `tags` are the ids by tag."""
    names: dict[str, list[str]] = {}
    for tag in sorted(tags):
        names.setdefault(tags[tag], []).append(tag)
    return tuple(
        Stop(
            place=visit.place,
            seq=visit.seq,
            operation=visit.revision.operation,
            editors=visit.editors,
            at=visit.at,
            tags=tuple(names.get(visit.revision.id, ())),
        )
        for visit in visits
    )


def points(visits: Sequence[Visit]) -> tuple[Point, ...]:
    """Return the revisions that were re-checked, base first."""
    return tuple(
        Point(visit.place, visit.seq, rates_of(visit))
        for visit in visits
        if "rates" in visit.ledger
    )


def rates_of(visit: Visit) -> Rates:
    """Return the metrics at a revision; all None if it was not re-checked."""
    names = Rates().to_json()
    rates = visit.ledger.get("rates", {})
    return Rates(**{name: rates.get(name) for name in names})


def marks(visits: Sequence[Visit], journal: Sequence[Revision]) -> tuple[BranchMark, ...]:
    """Return reverts on the way to head and rollbacks to somewhere on it, in order of place."""
    all_marks = [*_reverts(visits), *_rollbacks(visits, journal)]
    return tuple(sorted(all_marks, key=lambda mark: (mark.place, mark.seq)))


def _reverts(visits: Sequence[Visit]) -> Iterator[BranchMark]:
    for visit in visits:
        if requests := reverted_by(visit.revision.body):
            yield BranchMark(operations.REVERT, visit.place, visit.seq, requests=requests)


def _rollbacks(visits: Sequence[Visit], journal: Sequence[Revision]) -> Iterator[BranchMark]:
    places = {visit.revision.id: visit.place for visit in visits}
    numbers = {revision.id: revision.seq for revision in journal}
    for revision in journal:
        place = places.get(revision.body.get("target", ""))
        if revision.operation == operations.ROLLBACK and place is not None:
            yield BranchMark(
                operations.ROLLBACK, place, revision.seq, left=numbers.get(revision.body["from"])
            )
