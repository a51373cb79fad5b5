"""Requests that an apply would leave as they are: told from the record, without the model."""

from __future__ import annotations

from collections.abc import Iterator

from continual.history.inspection import rates_at, retained_along
from continual.recheck.retention import SKIPPED, outcomes_of
from continual.streams import Item
from store import Store

LEADING_MAX = 10_000
"""Items of a stream that are looked at before one of them is applied."""


def known_ids(store: Store) -> set[str]:
    """Return the ids of the requests that are in force and right at head, or that were right
    without an edit when the model was in head's state. Empty if some correction in force is wrong
    at head."""
    lineage = store.lineage("head")
    retained = retained_along(store, lineage).requests
    applied_ids = {identity for identity, request in retained.items() if request.applied}
    if applied_ids and rates_at(store, store.head).get("ER_incl") != 1.0:
        return set()
    return applied_ids | {
        outcome.id
        for revision in lineage
        if revision.fingerprint == store.head.fingerprint
        for outcome in outcomes_of(revision.body)
        if outcome.outcome == SKIPPED
    }


def leading_known(
    store: Store, items: Iterator[Item], *, takes_all: bool
) -> tuple[list[Item], bool]:
    """Read the items at the beginning that change nothing, and the first other one; tell whether
    one came, or may come. With `takes_all`, every item counts as one that changes something."""
    known: set[str] | None = None
    leading: list[Item] = []
    for item in items:
        leading.append(item)
        if known is None:
            known = set() if takes_all else known_ids(store)
        if not changes_nothing(item, known) or len(leading) == LEADING_MAX:
            return leading, True
    return leading, False


def changes_nothing(item: Item, known: set[str]) -> bool:
    """Tell whether an item can be read, and all of its requests are known."""
    return item.reason is None and all(request.id in known for request in item.requests)
