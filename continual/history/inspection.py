"""Views of a history: status, log, one revision, and the difference between two.

Reads records alone: no model, no tensors, no torch. Returns JSON objects; leaves their look on a
terminal to others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from continual.history.warnings import store_warnings
from continual.memory import INDEX_FILE
from continual.prompts import shown_prompt
from continual.recheck.metrics import Count, Rates
from continual.recheck.retention import (
    Outcome,
    Retention,
    count_outcomes,
    outcomes_of,
    reverted_by,
    reverted_later,
)
from continual.requests import Probe, Request
from continual.settings import StoreSettings
from store import BlobRef, Revision, Store
from store.vectors import describe

JsonObject = dict[str, Any]  # a JSON object

UNMEASURED = Rates().to_json()
WATCHED_ROLES = ("watch", "neighbour", "continuation")
SHOWN = (  # of a request or a probe
    "prompt",
    "messages",
    "forms",
    "target_new",
    "target_old",
    "answer",
    "subject",
    "relation",
    "case",
    "extra",
)


def status(store: Store) -> JsonObject:
    """Return the store's status: head, the number of corrections in force, and the metrics."""
    head = store.head
    retention = retained_at(store, head)
    settings = StoreSettings.of(store.settings)
    return {
        "type": "status",
        "head": head.id,
        "seq": head.seq,
        "revisions": store.length,
        "requests_active": retention.applied,
        "requests_failed": len(retention.requests) - retention.applied,
        "quarantined": sum(1 for _ in store.quarantined()),
        "base": store.base.fingerprint,
        "model": settings.model.path,
        "task": settings.task_name,
        "fingerprint": head.fingerprint,
        **rates_at(store, head),
        "streams": {name: state["position"] for name, state in store.streams().items()},
        "index": _index(store, head),
        "store": str(store.path),
        "warnings": store_warnings(store),
    }


def _index(store: Store, head: Revision) -> JsonObject | None:
    """Return the size of the vector index in the cache and its recall, the share of inputs for
    which it finds the nearest vector (null if it compares an input with each). None if the cache
    has no index for this head."""
    index = describe(store.cache / INDEX_FILE)
    if index is None or (index.seq, index.revision) != (head.seq, head.id):
        return None
    return {"vectors": index.count, "recall": index.recall}


def entry(store: Store, revision: Revision) -> JsonObject:
    """Return one line of the log."""
    outcomes = outcomes_of(revision.body)
    ledger = store.ledger(revision.seq) or {}
    return {
        "type": "revision",
        "seq": revision.seq,
        "revision": revision.id,
        "parent": revision.parent,
        "operation": revision.operation,
        "editor": revision.body.get("editor"),
        "requests": len(asked(outcomes)),
        **count_outcomes(outcomes),
        "quarantined": len(revision.body.get("quarantined", ())),
        **rates_at(store, revision),
        "patch_bytes": patch_bytes(revision),
        "fingerprint": revision.fingerprint,
        "measured_at": ledger.get("at"),
        "target": revision.body.get("target"),
        "erased": revision.body.get("relation"),
        "given_back": revision.body.get("given_back"),
        "reverted": [{"id": i, **facts_of(store.request(i))} for i in reverted_by(revision.body)],
        "first": facts_of(store.request(outcomes[0].id)) if outcomes else None,
        "tags": [tag for tag, identity in store.tags().items() if identity == revision.id],
    }


def has_text(store: Store, revision: Revision, text: str) -> bool:
    """Tell whether a request of a revision has a text in its prompt, target, subject or relation,
    whatever its case."""
    query = text.casefold()
    ids = [*(outcome.id for outcome in outcomes_of(revision.body)), *reverted_by(revision.body)]
    texts = (facts_of(store.request(identity)).values() for identity in ids)
    return any(query in str(value).casefold() for values in texts for value in values)


def details(store: Store, revision: Revision) -> JsonObject:
    """Return everything on record about one revision, its requests and their outcomes included."""
    return {
        **entry(store, revision),
        "settings": revision.body.get("settings"),
        "outcomes": [_outcome(store, outcome) for outcome in outcomes_of(revision.body)],
        "quarantined_records": list(revision.body.get("quarantined", ())),
        "streams": {n: s["position"] for n, s in revision.body.get("streams", {}).items()},
        "changed": (store.ledger(revision.seq) or {}).get("changed", []),
        "patch": revision.patch.sha256 if revision.patch else None,
        "previous": revision.previous,
    }


def difference(store: Store, older: Revision, newer: Revision) -> JsonObject:
    """Return the requests, patches and probe outcomes that differ between two revisions."""
    older_set, newer_set = retained_at(store, older), retained_at(store, newer)
    older_patches, newer_patches = _patches_at(store, older), _patches_at(store, newer)
    return {
        "type": "diff",
        "from": older.id,
        "to": newer.id,
        "added": [_shown(i, newer_set) for i in newer_set.requests if i not in older_set],
        "gone": [_shown(i, older_set) for i in older_set.requests if i not in newer_set],
        "patch_bytes_added": sum(ref.length for ref in (newer_patches - older_patches).elements()),
        "patch_bytes_gone": sum(ref.length for ref in (older_patches - newer_patches).elements()),
        "patches": [
            *_named(newer_patches - older_patches, "added", newer, store),
            *_named(older_patches - newer_patches, "gone", older, store),
        ],
        "turned": list(_turned(store, older, newer, {*older_set.requests} & {*newer_set.requests})),
        "rates": {"from": rates_at(store, older), "to": rates_at(store, newer)},
    }


# -- reading the records


def retained_at(store: Store, revision: Revision) -> Retention:
    """Return the retention set at a revision."""
    return retained_along(store, store.lineage(revision))


def retained_along(store: Store, lineage: Sequence[Revision]) -> Retention:
    """Return the retention set at the end of a lineage (base first)."""
    retention = Retention()
    for ancestor, reverted in zip(lineage, reverted_later(lineage), strict=True):
        for outcome in outcomes_of(ancestor.body):
            request = Request.from_json(store.request(outcome.id))
            retention.take(outcome, request, is_reverted=outcome.id in reverted)
    return retention


def _named(refs: Counter[BlobRef], change: str, at: Revision, store: Store) -> Iterator[JsonObject]:
    """Yield the patches in `refs`, each with its revision among the layers of `at`."""
    counts = Counter(refs)
    for layer in store.layers(at):
        if layer.patch is not None and counts[layer.patch] > 0:
            counts[layer.patch] -= 1
            yield {
                "change": change,
                "revision": layer.revision.id,
                "seq": layer.revision.seq,
                "patch": layer.patch.sha256,
                "bytes": layer.patch.length,
            }


def _patches_at(store: Store, revision: Revision) -> Counter[BlobRef]:
    """Count the patches of a revision's state: a state may have the same patch several times."""
    return Counter(layer.patch for layer in store.layers(revision) if layer.patch is not None)


def rates_at(store: Store, revision: Revision) -> dict[str, float | None]:
    """Return the metrics in the ledger; all None if the revision was not re-checked."""
    record = store.ledger(revision.seq)
    return {**UNMEASURED, **(record["rates"] if record else {})}


def base_accuracies(store: Store) -> dict[str, float | None]:
    """Return the accuracies on the probe sets before the first edit, by the set's name."""
    record = store.ledger(0)
    counts = record["base"] if record else {}
    return {role: Count(*count).rate for role, count in counts.items()}


def asked(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the outcomes of the stream's own requests, without the repairs of earlier edits."""
    return [outcome for outcome in outcomes if not outcome.repair]


def patch_bytes(revision: Revision) -> int:
    """Return the size of a revision's patch in bytes; 0 if it has none."""
    return revision.patch.length if revision.patch else 0


def _outcome(store: Store, outcome: Outcome) -> JsonObject:
    record = outcome.to_json()
    for name in ("expected", "neighbours"):  # token ids, of use to the engine alone
        record.pop(name, None)
    return {**facts_of(store.request(outcome.id)), **record}


def _shown(identity: str, kept: Retention) -> JsonObject:
    retained = kept.requests[identity]
    facts = facts_of(retained.request.to_json())
    return {"id": identity, **facts, "outcome": "applied" if retained.applied else "failed"}


def facts_of(request: Mapping[str, Any]) -> JsonObject:
    """Return the fields of a request or a probe that people read. A chat is under `messages`, and
    as a text under `prompt`."""
    facts = {key: request[key] for key in SHOWN if key in request}
    return {"prompt": shown_prompt(request), **facts}


# -- probes that turned


def _turned(store: Store, older: Revision, newer: Revision, kept: set[str]) -> Iterator[JsonObject]:
    """Yield the probes that both revisions measure and only one of them answers rightly."""
    sets = store.base.body["probes"]
    older_wrong, newer_wrong = _wrong_at(store, older), _wrong_at(store, newer)
    for key in sorted(older_wrong ^ newer_wrong):
        owner, role, index = key.rsplit(":", 2)
        if role in WATCHED_ROLES:
            continue  # token ids: `show` has their words
        if owner in kept or owner in sets:
            yield {
                "probe": key,
                "role": role,
                **_probe(store, owner, role, int(index)),
                "right": {"from": key not in older_wrong, "to": key not in newer_wrong},
            }


def _wrong_at(store: Store, revision: Revision) -> set[str]:
    """Return the keys of the probes that are wrong at a revision, by the ledger's last record of
    each."""
    outcomes: dict[str, bool] = {}
    for ancestor in store.lineage(revision):
        record = store.ledger(ancestor.seq)
        outcomes.update(record["turned"] if record else {})
    return {key for key, is_right in outcomes.items() if not is_right}


def _probe(store: Store, owner: str, role: str, index: int) -> JsonObject:
    """Return the shown fields of a probe, given the parts of its key in the ledger."""
    sets = store.base.body["probes"]
    if owner in sets:
        return facts_of(sets[owner][index])
    request = Request.from_json(store.request(owner))
    wordings = {
        "edit": request.asked,
        "rephrase": request.rephrases,
        "held_out": request.held_out_rephrases,
    }
    if role in wordings:
        wording_probe = Probe(prompt=wordings[role][index], answer=request.target_new)
        return facts_of(wording_probe.to_json())
    probe = (request.locality if role == "locality" else request.portability)[index]
    return facts_of(probe.to_json())
