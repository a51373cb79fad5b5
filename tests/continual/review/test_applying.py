"""Approved corrections are applied exactly once, verified, and followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from continual.reporting import report_on
from continual.requests import Request
from continual.review.applying import apply_item, apply_next, begins_with, revert_item, settle
from continual.review.conflicts import InForce
from continual.review.following import follow
from continual.review.items import QueueItem, WrongState
from continual.review.queue import CorrectionQueue, Proposal
from continual.session import Session
from store import Store
from tests import tiny_language as language
from tests.continual.conftest import Make, reopened


def proposed(queue: CorrectionQueue, country: int, target: str | None = None) -> QueueItem:
    """Propose and approve a correction."""
    request = Request.from_json(language.correction(country, target))
    (added,) = queue.add([Proposal.of(request, "ana")])
    return queue.decide([added.item.number], "approved", "bo")[0]


def states(queue: CorrectionQueue) -> list[str]:
    return [item.state for item in queue.items()]


def target(country: int) -> str:
    return str(language.correction(country)["target_new"])


def test_an_approved_correction_is_applied_and_verified(knowing: Session) -> None:
    queue = CorrectionQueue(knowing.store)
    proposed(queue, 1)
    done = apply_next(knowing, queue)
    assert done is not None
    assert done.state == "verified"
    assert [event.state for event in done.events] == [
        *("pending", "approved", "applying", "applied", "verified")
    ]
    assert done.proof["before"].split()[:1] == [language.capital(1)]
    assert done.proof["after"].split()[:1] == [target(1)]
    assert done.revision == knowing.head.id
    assert done.proof["rates"]["SR"] == 1.0
    assert apply_next(knowing, queue) is None
    assert CorrectionQueue(knowing.store).get(1) == done


def test_what_the_model_says_already_needs_no_edit(knowing: Session) -> None:
    queue = CorrectionQueue(knowing.store)
    item = apply_item(knowing, queue, proposed(queue, 1, language.capital(1)))
    assert (item.state, item.proof["outcome"]) == ("verified", "skipped")
    follow(queue, report_on(knowing.store))
    assert states(queue) == ["verified"]
    with pytest.raises(WrongState, match="right by itself"):
        revert_item(knowing, queue, 1, "ana")


def test_what_a_server_took_out_before_it_died_is_out(knowing: Session) -> None:
    queue = CorrectionQueue(knowing.store)
    item = apply_item(knowing, queue, proposed(queue, 1))
    assert item.request is not None
    knowing.revert(item.request.id)  # and the queue was not told
    assert states(queue) == ["verified"]
    head = knowing.head
    for _ in range(2):
        assert revert_item(knowing, queue, 1, "ana").state == "reverted"
    assert knowing.head == head


def test_later_edits_supersede_reverts_take_back_and_rollbacks_too(knowing: Session) -> None:
    queue, other = CorrectionQueue(knowing.store), language.CAPITALS[0]
    in_force = InForce(knowing.store)
    for number in (1, 2):
        apply_item(knowing, queue, proposed(queue, number))
    rival = Request.from_json(language.correction(1, other))
    assert [c.target_new for c in in_force.conflicts(rival)] == [target(1)]
    apply_item(knowing, queue, proposed(queue, 1, other))
    assert states(queue) == ["superseded", "verified", "verified"]
    assert in_force.conflicts(rival) == []
    assert revert_item(knowing, queue, 3, "ana", "wrong after all").state == "reverted"
    assert states(queue) == ["verified", "verified", "reverted"]
    assert queue.get(3).events[-1].why == "wrong after all"
    knowing.rollback("base")
    follow(queue, report_on(knowing.store))
    assert states(queue) == ["reverted", "reverted", "reverted"]
    knowing.rollback("@2")
    follow(queue, report_on(knowing.store))
    assert states(queue) == ["verified", "verified", "reverted"]
    queue.decide([3], "approved", "bo")
    assert apply_next(knowing, queue) == queue.get(3)
    assert states(queue) == ["superseded", "verified", "verified"]


def test_broken_corrections_are_followed_to_their_repair(knowing: Session) -> None:
    queue = CorrectionQueue(knowing.store)
    item = apply_item(knowing, queue, proposed(queue, 1))
    assert item.request is not None
    key = f"{item.request.id}:edit:0"
    ledger = dict(knowing.store.ledger(1) or {})
    knowing.store.record_ledger(1, {**ledger, "turned": {**ledger["turned"], key: False}})
    follow(queue, report_on(knowing.store))
    assert states(queue) == ["broken"]
    knowing.store.record_ledger(1, ledger)
    follow(queue, report_on(knowing.store))
    assert states(queue) == ["repaired"]


def test_a_correction_that_no_editor_makes_has_failed(knowing: Session) -> None:
    queue = CorrectionQueue(knowing.store)
    request = Request.from_json({"prompt": "the capital " * 40, "target_new": "Alria"})
    queue.add([Proposal.of(request, "ana")])
    (item,) = queue.decide([1], "approved", "bo")
    done = apply_item(knowing, queue, item)
    assert done.state == "failed"
    assert "tokens" in done.events[-1].why
    assert knowing.head.seq == 0
    queue.decide([1], "approved", "bo", "try again", editor="serac")


KILLED_AT = ("applying", "step", "applied", "verified")


@pytest.mark.parametrize("moment", KILLED_AT)
def test_a_kill_at_any_moment_loses_none_and_doubles_none(
    knowing: Session, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The process ends behind one of its durable writes, whichever; the next one goes on."""
    queue = CorrectionQueue(knowing.store)
    item = proposed(queue, 1)

    class Killed(BaseException):
        pass

    def ending(write: Any, ends: Any) -> Any:
        def written(self: Store, *args: Any, **more: Any) -> Any:
            result = write(self, *args, **more)
            if ends(*args):
                raise Killed
            return result

        return written

    def says(records: dict[str, Any]) -> bool:
        return any(record["state"] == moment for record in records.values())

    with monkeypatch.context() as patched:
        if moment == "step":
            patched.setattr(Store, "commit", ending(Store.commit, lambda _: True))
        else:
            patched.setattr(Store, "record_queue", ending(Store.record_queue, says))
        with pytest.raises(Killed):
            apply_item(knowing, queue, item)
    again = reopened(knowing)
    queue = CorrectionQueue(again.store)
    settle(again, queue)
    while apply_next(again, queue) is not None:
        pass
    assert states(queue) == ["verified"]
    made = [r for r in again.store.revisions() if r.operation == "edit"]
    assert len(made) == 1
    assert queue.get(1).revision == made[0].id
    assert again.ask(language.ask(1), 1) == target(1)
    settle(again, queue)
    assert len(list(again.store.revisions())) == 2
    again.close()


@pytest.mark.parametrize("editor", ["tpatcher", "rome", "ft-last"])
def test_a_try_out_changes_nothing(knowing: Session, editor: str) -> None:
    knowing.apply([language.correction(2)], editor="tpatcher")
    before = {p: p.read_bytes() for p in knowing.store.path.rglob("*.mdb") if p.name != "lock.mdb"}
    fingerprint = knowing.edited.fingerprint
    read = knowing.tokenizer(language.ask(5), return_tensors="pt")
    logits = knowing.model(**read).logits
    request = Request.from_json(language.correction(1))
    told = knowing.try_out(request, knowing.settings(chain=(editor,))).to_json()
    assert told["before"].split()[:1] == [language.capital(1)]
    assert knowing.edited.fingerprint == fingerprint == knowing.head.fingerprint
    assert torch.equal(knowing.model(**read).logits, logits)
    assert before == {p: p.read_bytes() for p in before}
    if told["outcome"] == "applied":
        assert told["after"].split()[:1] == [target(1)]
    (step,) = knowing.apply([language.correction(1)], editor=editor)
    assert step.outcomes[0].outcome == told["outcome"]
    rates = {} if step.measured is None else step.measured.rates.to_json()
    assert {n: told["rates"][n] for n in ("SR", "ER", "TrainR", "TestR")} == {
        n: rates[n] for n in ("SR", "ER", "TrainR", "TestR")
    }
    assert told["patch_bytes"] <= step.patch_bytes


def test_an_answer_begins_with_whole_words() -> None:
    assert begins_with(" Canberra, of course", "Canberra")
    assert begins_with("CANBERRA", "canberra ")
    assert begins_with("42%", "42%")
    assert not begins_with("Canberras", "Canberra")
    assert not begins_with("the Canberra", "Canberra")
    assert not begins_with("", "x")


def test_settling_leaves_a_store_without_a_queue_as_it_is(made: Make, random_model: Path) -> None:
    session = made(random_model)
    assert settle(session, CorrectionQueue(session.store)) == []
    assert list(session.store.queue_entries()) == []
