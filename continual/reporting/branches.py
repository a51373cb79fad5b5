"""The branches that were rolled back: ways that no longer lead to head.

A rollback erases nothing. The steps that it left stay in the journal, with the metrics that the
ledger has of them; a branch is such steps in a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from continual.recheck.metrics import Rates
from continual.recheck.retention import APPLIED, FAILED
from continual.reporting.curves import rates_of
from continual.reporting.walk import Visit, visit_of
from store import Revision, Store, operations


@dataclass(frozen=True)
class Branch:
    """Revisions in a row that are not on the way to head. It starts behind a revision of that way,
    or of an earlier branch."""

    place: int  # steps from base to the revision that it starts behind
    fork_seq: int
    first_seq: int
    last_seq: int
    revisions: int
    editors: tuple[str, ...]
    applied: int  # corrections, repairs included
    failed: int
    rates: Rates  # at its end
    first_at: str | None  # ISO 8601
    last_at: str | None
    left_seq: int | None  # of the rollback that left it
    tags: tuple[str, ...]  # on its revisions


def branches(
    store: Store, visits: Sequence[Visit], journal: Sequence[Revision]
) -> tuple[Branch, ...]:
    """Return the branches beside the way to head `visits`, in the order of their ends."""
    places = {visit.revision.id: visit.place for visit in visits}
    by_id = {revision.id: revision for revision in journal}
    beside = [r for r in journal if r.operation != operations.ROLLBACK and r.id not in places]
    parents = {revision.parent for revision in beside}
    branch_list = []
    for tip in (revision for revision in beside if revision.id not in parents):
        fork, path = _back(tip, by_id, places)
        branch_list.append(_branch(store, path, fork, places[fork.id], journal))
        for step, revision in enumerate(path, start=places[fork.id] + 1):
            places[revision.id] = step
    return tuple(branch_list)


def _back(
    tip: Revision, by_id: Mapping[str, Revision], places: Mapping[str, int]
) -> tuple[Revision, list[Revision]]:
    """Return the last revision before `tip` that has a place, and the revisions from there on."""
    path: list[Revision] = []
    revision = tip
    while revision.id not in places:
        path.append(revision)
        revision = by_id[revision.parent or ""]
    return revision, path[::-1]


def _branch(
    store: Store, path: Sequence[Revision], fork: Revision, place: int, journal: Sequence[Revision]
) -> Branch:
    visits = [visit_of(store, place + 1 + step, r) for step, r in enumerate(path)]
    outcomes = [outcome for visit in visits for outcome in visit.outcomes]
    times = [visit.at for visit in visits if visit.at is not None]
    ids = {revision.id for revision in path}
    rollback_seqs = [
        revision.seq
        for revision in journal
        if revision.operation == operations.ROLLBACK and revision.body.get("from") in ids
    ]
    return Branch(
        place=place,
        fork_seq=fork.seq,
        first_seq=path[0].seq,
        last_seq=path[-1].seq,
        revisions=len(path),
        editors=tuple(dict.fromkeys(o.editor for o in outcomes if o.editor)),
        applied=sum(outcome.outcome == APPLIED for outcome in outcomes),
        failed=sum(outcome.outcome == FAILED for outcome in outcomes),
        rates=rates_of(visits[-1]),
        first_at=min(times, default=None),
        last_at=max(times, default=None),
        left_seq=max(rollback_seqs, default=None),
        tags=tuple(sorted(tag for tag, identity in store.tags().items() if identity in ids)),
    )
