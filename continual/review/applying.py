"""Applies approved corrections with a session: one at a time, exactly once, and verified.

Before the step an item says `applying`, with the journal's length; the step's one transaction then
makes the edit durable, and the item says `applied` behind it. Whoever is killed in between finds
the step by its request when the queue is opened again: nothing is lost, and nothing made twice.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from continual.editors.chains import chain_of
from continual.errors import CeditError
from continual.history.inspection import rates_at
from continual.prompts import normalised
from continual.recheck.retention import APPLIED as STEP_APPLIED
from continual.recheck.retention import FAILED as STEP_FAILED
from continual.recheck.retention import Outcome, outcomes_of
from continual.reporting import report_on
from continual.requests import Request
from continual.review.following import FROM_START, follow
from continual.review.items import QueueItem, WrongState
from continual.review.queue import CorrectionQueue
from continual.review.states import APPLIED, APPLYING, APPROVED, FAILED, GONE, VERIFIED
from continual.session import Session
from store import Revision, Store, StoreError

WRITER = "cedit"
ANSWER_TOKENS = 64
REVERT_WHY = "taken back"


def settle(session: Session, queue: CorrectionQueue) -> list[QueueItem]:
    """Finish whatever a process that was killed left half-done; return the items that moved."""
    moved = [_found(session.store, queue, item) for item in queue.items({APPLYING})]
    for item in queue.items({APPLIED}):
        if "after" not in item.proof:
            moved.append(_verify(session, queue, item))
    return [*moved, *follow(queue, report_on(session.store))]


def _found(
    store: Store, queue: CorrectionQueue, item: QueueItem, fault: str | None = None
) -> QueueItem:
    """Find the step of an item that was being applied. Without a step it has failed, if there is a
    `fault`; else it is approved again."""
    assert item.request is not None
    for revision in store.revisions(item.since or 0):
        for outcome in outcomes_of(revision.body):
            if outcome.id == item.request.id:
                return _record(queue, item, outcome, revision, {})
    if fault is not None:
        return queue.put([item.moved(FAILED, WRITER, fault)])[0]
    why = "the server ended before the step was made"
    return queue.put([item.moved(APPROVED, WRITER, why, since=None)])[0]


def apply_next(session: Session, queue: CorrectionQueue) -> QueueItem | None:
    """Apply the first approved item; None if there is none."""
    item = queue.next_approved()
    return None if item is None else apply_item(session, queue, item)


def apply_item(session: Session, queue: CorrectionQueue, item: QueueItem) -> QueueItem:
    """Apply an approved item and verify it. An item that cannot be applied becomes failed; a fault
    of the store is raised. The session stands at head."""
    assert item.request is not None
    (item,) = queue.put([item.moved(APPLYING, WRITER, since=session.store.length)])
    begun = time.monotonic()
    try:
        before = session.ask(item.prompt, ANSWER_TOKENS)
        chain = {} if item.editor is None else {"chain": chain_of(item.editor, session.task.name)}
        (step,) = session.apply_requests([_request(item)], session.settings(**chain))
    except StoreError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, CeditError) else f"{type(error).__name__}: {error}"
        return _found(session.store, queue, item, reason)
    outcome = next(o for o in step.outcomes if o.id == _request(item).id and not o.repair)
    proof = {
        "before": before,
        "seconds": round(time.monotonic() - begun, 3),
        "patch_bytes": step.patch_bytes,
        "rates": {} if step.measured is None else step.measured.rates.to_json(),
        "turned": {} if step.measured is None else dict(step.measured.turned),
        "changed": [] if step.measured is None else [dict(c) for c in step.measured.changed],
    }
    follow(queue, report_on(session.store))  # the others first: who waits for this one finds them
    item = _record(queue, item, outcome, step.revision, proof)
    return _verify(session, queue, item) if item.state == APPLIED else item


def _request(item: QueueItem) -> Request:
    assert item.request is not None
    return item.request


def _record(
    queue: CorrectionQueue,
    item: QueueItem,
    outcome: Outcome,
    revision: Revision,
    proof: dict[str, Any],
) -> QueueItem:
    """Record the outcome of an item's step."""
    told = {**proof, "outcome": outcome.outcome, "editor": outcome.editor, "seq": revision.seq}
    changes: dict[str, Any] = {"revision": revision.id, "proof": told}
    if outcome.outcome == STEP_FAILED:
        moved = item.moved(FAILED, WRITER, outcome.reason or "no editor got it right", **changes)
    elif outcome.outcome == STEP_APPLIED:
        moved = item.moved(APPLIED, WRITER, f"at @{revision.seq}", **changes)
    else:
        moved = item.moved(APPLIED, WRITER, "the model was right already", **changes)
    return queue.put([moved])[0]


def _verify(session: Session, queue: CorrectionQueue, item: QueueItem) -> QueueItem:
    """Ask the model freely, as a user would, in every form that the correction holds for."""
    request = _request(item)
    answers = [session.ask(prompt, ANSWER_TOKENS) for prompt in request.asked]
    proof = {**item.proof, "after": answers[0], "rates": _rates(session, item)}
    item = replace(item, proof=proof)
    wrong = [answer for answer in answers if not begins_with(answer, request.target_new)]
    if wrong:
        why = f"asked freely, the model answers {wrong[0][:200]!r}"
        return queue.put([item.noted(APPLIED, WRITER, why)])[0]
    return queue.put([item.moved(VERIFIED, WRITER, "asked freely, the model answers rightly")])[0]


def _rates(session: Session, item: QueueItem) -> dict[str, Any]:
    rates: dict[str, Any] = dict(item.proof.get("rates") or {})
    return rates or rates_at(session.store, session.store.head)


def begins_with(answer: str, target: str) -> bool:
    """Tell whether an answer begins with a target, as whole words, whatever the whitespace."""
    said, wanted = normalised(answer), normalised(target)
    rest = said[len(wanted) :]
    return said.startswith(wanted) and not (rest[:1].isalnum() and wanted[-1:].isalnum())


def revert_item(
    session: Session, queue: CorrectionQueue, number: int, who: str, why: str = ""
) -> QueueItem:
    """Take an item's correction out of the model. One that is out already, as a server that died
    could not say, stays as it is. Raises CeditError for one that the model had right by itself,
    UnknownRequest, RevertError, …"""
    follow(queue, report_on(session.store))
    item = queue.get(number)
    if item.state in GONE:
        return item
    if item.proof.get("outcome") == FROM_START:
        raise WrongState(
            f"Correction {number} has no part in the model, which was right by itself: there is "
            "nothing to take out."
        )
    session.revert(_request(item).id)
    follow(queue, report_on(session.store))
    item = queue.get(number)
    return queue.put([item.noted(item.state, who, why or REVERT_WHY)])[0]
