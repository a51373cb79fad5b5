"""A step of the past made once more: the same requests, settings and seed, at the same state.

Knows how a batch is found again in a revision's record. Writes nothing: what comes out is compared
with what there is (`recomputing`), or takes its place (`reverting`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from continual import retention
from continual.candidates import encode
from continual.editing import Edited
from continual.pipeline import Batch, Pipeline, Settings
from continual.requests import Request
from continual.retention import outcomes_of
from continual.standing import Past, Standing
from store import Revision

if TYPE_CHECKING:
    from continual.session import Session


def batch_of(session: Session, revision: Revision, without: Collection[str] = ()) -> Batch:
    """The requests of a step in an order that makes the same plan: first those that others of the
    same batch superseded, then those that were edited, then repeats and what was right already."""
    asked = [o for o in outcomes_of(revision.body) if not o.repair and o.id not in without]
    asked.sort(key=lambda o: o.outcome != retention.SUPERSEDED)
    requests = [Request.from_json(session.store.request(outcome.id)) for outcome in asked]
    return Batch(tuple(encode(request, session.task) for request in requests))


def pipeline_at(session: Session, past: Past, settings: Settings) -> Pipeline:
    """The pipeline as it was after a revision, whose state the model has to be in."""
    standing = Standing(session.store, session.site, past)
    return Pipeline(session.store, session.site, standing, settings, session.statistics)


def rehearse(
    session: Session, pipeline: Pipeline, revision: Revision, without: Collection[str] = ()
) -> Edited:
    """What a revision's step comes to now, without some of its requests. The model, which stands
    before it, is left behind it."""
    batch = batch_of(session, revision, without)
    is_due = session.store.ledger(revision.seq) is not None
    return pipeline.rehearse(batch, revision.seq, is_due=is_due)


def settings_of(revision: Revision) -> Settings:
    """The settings of a step."""
    return Settings.from_json(revision.body["settings"])
