"""Corrections of a history: those in force at a revision, and all that were ever asked for.

Reads records alone: no model, no tensors, no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from continual.errors import CeditError
from continual.history.inspection import JsonObject, facts_of, retained_at
from continual.recheck.retention import ATTEMPTED, Outcome, outcomes_of, reverted_later
from store import Revision, Store, operations
from store.errors import AmbiguousRevision, UnknownRevision

SEARCHED = ("prompt", "target_new", "target_old", "subject", "relation", "case", "id")
PREFIX_LENGTH_MIN = 4  # digits of a request's id


class UnknownRequest(CeditError):
    """There is no such request to take out."""

    exit_code = 2


@dataclass(frozen=True)
class Attempt:
    """An entry of a revision's body that asked an editor, and that revision."""

    revision: Revision
    outcome: Outcome


def in_force(store: Store, revision: Revision) -> list[JsonObject]:
    """The corrections that count at a revision, applied or failed, in the order of their edits."""
    lineage = store.lineage(revision)
    attempts = _latest(_attempts(lineage))
    retained = retained_at(store, revision).requests
    return [
        _record(store, attempts[identity], in_force=retained[identity].applied)
        for identity in retained
    ]


def ever_asked(store: Store) -> list[JsonObject]:
    """Every correction of the journal once, rolled back ones too, by its latest attempt."""
    retained = retained_at(store, store.head).requests
    return [
        _record(store, attempt, in_force=identity in retained and retained[identity].applied)
        for identity, attempt in _latest(_attempts(store.revisions())).items()
    ]


def gone(store: Store) -> set[str]:
    """The ids of requests that were attempted and do not count at head: rolled back, reverted or
    superseded."""
    identities = {entry.outcome.id for entry in _attempts(store.revisions())}
    return identities.difference(retained_at(store, store.head).requests)


def matching(corrections: Iterable[JsonObject], text: str) -> list[JsonObject]:
    """The corrections that have a text in one of the fields SEARCHED, whatever its case."""
    query = text.casefold()
    return [
        correction
        for correction in corrections
        if any(query in str(correction.get(name, "")).casefold() for name in SEARCHED)
    ]


def identified(store: Store, name: str) -> str | None:
    """The id of the request of the journal that `name` begins; None where there is none. Raises
    UnknownRequest where several begin so."""
    if len(name) < PREFIX_LENGTH_MIN:
        return None
    return _only_one({entry.outcome.id for entry in _entries(store.revisions())}, name)


def standing_request(lineage: Sequence[Revision], name: str) -> str:
    """The id of the request that a name stands for, among those that can be taken out.

    Raises UnknownRequest.
    """
    ids, standing_ids = set[str](), set[str]()
    for revision, removals in zip(lineage, reverted_later(lineage), strict=True):
        outcomes = outcomes_of(revision.body)
        ids.update(o.id for o in outcomes)
        standing_ids.update(
            o.id for o in outcomes if o.outcome in ATTEMPTED and o.id not in removals
        )
    if len(name) < PREFIX_LENGTH_MIN:
        raise UnknownRequest(
            f"{name!r}: give {PREFIX_LENGTH_MIN} digits or more of its id, or the revision of an "
            "erasure."
        )
    identity = _only_one(ids, name)
    if identity is None:
        raise UnknownRequest(
            f"{name!r} is no request of this history: `cedit find TEXT` and `cedit list` give ids."
        )
    if identity not in standing_ids:
        raise UnknownRequest(
            f"Request {identity} has no part in the model: it was reverted, or never edited."
        )
    return identity


def standing_erasure(store: Store, name: str) -> Revision | None:
    """The erasure of a relation that a revision's name stands for; None where it names none. Raises
    UnknownRequest for an erasure that is not in the model."""
    try:
        revision = store.revision(name)
    except (UnknownRevision, AmbiguousRevision):
        return None
    if revision.operation != operations.ERASE:
        return None
    if revision.id not in {layer.revision.id for layer in store.layers(store.head) if layer.patch}:
        raise UnknownRequest(
            f"The erasure {revision.id[:12]} has no part in the model: it was taken out, or rolled "
            "back."
        )
    return revision


def _only_one(ids: Iterable[str], start: str) -> str | None:
    """The id that begins so; None where none does. Raises UnknownRequest for several."""
    matches = sorted(identity for identity in ids if identity.startswith(start.lower()))
    if len(matches) > 1:
        raise UnknownRequest(
            f"{start!r} is the start of several requests: {', '.join(matches[:5])}; "
            "give more of it."
        )
    return matches[0] if matches else None


def past(store: Store, identity: str) -> JsonObject:
    """One correction with every step that it was part of, the oldest first."""
    attempts = [a for a in _entries(store.revisions()) if a.outcome.id == identity]
    retained = retained_at(store, store.head).requests
    is_applied = identity in retained and retained[identity].applied
    return {
        **_record(store, attempts[-1], in_force=is_applied),
        "type": "correction",
        "request": store.request(identity),
        "steps": [_step(store, attempt) for attempt in attempts],
    }


def _step(store: Store, attempt: Attempt) -> JsonObject:
    revision, record = attempt.revision, attempt.outcome.to_json()
    for name in ("id", "expected", "neighbours"):
        record.pop(name, None)
    return {
        "seq": revision.seq,
        "revision": revision.id,
        "measured_at": _time(store, revision),
        **record,
    }


def _record(store: Store, attempt: Attempt, *, in_force: bool) -> JsonObject:
    revision, outcome = attempt.revision, attempt.outcome
    return {
        "type": "correction",
        "id": outcome.id,
        **facts_of(store.request(outcome.id)),
        "outcome": outcome.outcome,
        "editor": outcome.editor,
        "in_force": in_force,
        "seq": revision.seq,
        "revision": revision.id,
        "measured_at": _time(store, revision),
    }


def _time(store: Store, revision: Revision) -> Any:
    return (store.ledger(revision.seq) or {}).get("at")


def _attempts(revisions: Iterable[Revision]) -> Iterator[Attempt]:
    """Entries that asked an editor."""
    return (entry for entry in _entries(revisions) if entry.outcome.outcome in ATTEMPTED)


def _entries(revisions: Iterable[Revision]) -> Iterator[Attempt]:
    for revision in revisions:
        for outcome in outcomes_of(revision.body):
            yield Attempt(revision, outcome)


def _latest(attempts: Iterable[Attempt]) -> dict[str, Attempt]:
    return {attempt.outcome.id: attempt for attempt in attempts}
