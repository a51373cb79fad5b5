"""Mends corrections that later steps have broken: each is applied again."""

from __future__ import annotations

from continual.recheck.retention import APPLIED, SKIPPED
from continual.reporting import report_on
from continual.requests import Request
from continual.review.following import follow
from continual.review.queue import CorrectionQueue
from continual.session import Session


def mend(session: Session, queue: CorrectionQueue) -> tuple[int, int]:
    """Apply the broken corrections at head again, one step each; return how many were broken, and
    how many of them are right now. One that is right again by an earlier step needs no edit."""
    broken = [one.request.id for one in report_on(session.store).corrections.broken]
    requests = [Request.from_json(session.store.request(identity)) for identity in broken]
    steps = session.apply_requests(requests, session.settings(batch_size=1))
    outcomes = [outcome for step in steps for outcome in step.outcomes]
    follow(queue, report_on(session.store))
    mended = {o.id for o in outcomes if o.outcome in (APPLIED, SKIPPED)}
    return len(broken), len(mended & set(broken))
