"""Acts are noted durably, and broken corrections are applied again."""

from __future__ import annotations

from continual.requests import Request
from continual.review.applying import apply_next
from continual.review.audit import Audit
from continual.review.mending import mend
from continual.review.queue import CorrectionQueue, Proposal
from continual.session import Session
from tests import tiny_language as language
from tests.continual.conftest import reopened


def test_acts_are_noted_in_their_order_and_stay(bare: Session) -> None:
    audit = Audit(bare.store)
    audit.note("ana", "rollback", "head is @1")
    audit.note("b" * 100, "verify")
    session = reopened(bare)
    again = Audit(session.store)
    again.note("cy", "tag")
    assert [(one.who, one.act, one.about) for one in again.latest(9)] == [
        ("cy", "tag", ""),
        ("b" * 64, "verify", ""),
        ("ana", "rollback", "head is @1"),
    ]
    assert [one.act for one in again.latest(1)] == ["tag"]
    assert len(CorrectionQueue(session.store)) == 0
    session.close()


def test_what_a_later_step_broke_is_mended(knowing: Session) -> None:
    queue = CorrectionQueue(knowing.store)
    request = Request.from_json(language.correction(2))
    queue.add([Proposal.of(request, "ana", editor="ft-all")])
    queue.decide([1], "approved", "bo")
    assert apply_next(knowing, queue) is not None
    assert mend(knowing, queue) == (0, 0)
    others = [language.correction(c) for c in range(20, 29)]
    knowing.apply(others, editor="ft-all", force=True, batch_size=9)
    from continual.reporting import report_on
    from continual.review.following import follow

    follow(queue, report_on(knowing.store))
    assert queue.get(1).state == "broken"
    assert mend(knowing, queue)[0] >= 1
    assert queue.get(1).state == "repaired"
