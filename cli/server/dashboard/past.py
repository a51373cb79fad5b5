"""The pages of the history: its revisions, two of them compared, and ways back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query
from fastapi.responses import Response
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool

from cli.report import charts
from cli.server.access import Served
from cli.server.corrections import waited
from cli.server.dashboard.showing import measured, shown
from cli.server.dashboard.visits import Person, Sent, require, to
from cli.server.problems import ApiProblem, problem_of
from cli.server.service import Service
from continual.history.inspection import difference, entry
from continual.review.following import follow
from continual.serving.tokens import Role
from continual.session import Session
from store import Revision

router = APIRouter(include_in_schema=False)
Value = TypeVar("Value")
Name = Annotated[str, Query(max_length=128)]
REVISIONS_SHOWN = 200
CHANGES_SHOWN = 200


@router.get("/history")
async def history_page(service: Served, visitor: Person, message: str = "") -> Response:
    """Show the revisions, and the metrics over them."""
    if not visitor.may(Role.propose):
        return to("/login", "Log in to see the history.")

    def read() -> tuple[list[dict[str, Any]], Any]:
        lineage = service.store.lineage("head")
        latest: Sequence[Revision] = lineage[::-1][:REVISIONS_SHOWN]
        entries = [entry(service.store, revision) for revision in latest]
        return entries, charts.metrics(service.facts.report)

    entries, chart = await run_in_threadpool(read)
    report = service.facts.report
    return shown(
        "history",
        service,
        visitor,
        entries=entries,
        chart=None if chart is None else Markup(str(chart)),
        branches=report.branches[::-1],
        total=report.title.revisions + 1,
        message=message,
    )


@router.get("/history/diff")
async def diff_page(
    service: Served, visitor: Person, a: Name = "head~1", b: Name = "head"
) -> Response:
    """Show the changes between two revisions."""
    if not visitor.may(Role.propose):
        return to("/login", "Log in to see the history.")
    older, newer = service.store.revision(a or "base"), service.store.revision(b or "head")
    changes = await run_in_threadpool(difference, service.store, older, newer)
    rates = {side: measured(changes["rates"][side]) for side in ("from", "to")}
    return shown(
        "diff",
        service,
        visitor,
        page="history",
        older=older,
        newer=newer,
        changes=changes,
        rates=rates,
        names=list(dict.fromkeys((*rates["from"], *rates["to"]))),
        cut=_cut(changes),
    )


def _cut(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first of each kind of change, and the number of those that are left out."""
    kinds = ("added", "gone", "turned")
    return {
        kind: {"rows": changes[kind][:CHANGES_SHOWN], "more": len(changes[kind][CHANGES_SHOWN:])}
        for kind in kinds
    }


@router.post("/history")
async def move_head(service: Served, visitor: Person, form: Sent) -> Response:
    """Roll back to a revision, or give one a name."""
    require(visitor, Role.admin, form)
    revision, who = service.store.revision(form["revision"]), visitor.token.name
    place = f"@{revision.seq} {revision.id[:12]}"
    if form["decision"] == "tag":
        tag = form["tag"].strip()
        await _done(service, lambda session: session.tag(tag, revision.id))
        service.audit.note(who, "tag", f"{tag} is {place}")
        return to("/history", f"@{revision.seq} is {tag} now.")
    if form["decision"] != "rollback":
        raise ApiProblem(400, "There is no such act.")

    def moved(session: Session) -> None:
        session.rollback(revision.id)
        follow(service.queue, service.facts.report)

    await _done(service, moved)
    service.audit.note(who, "rollback", f"head is {place}")
    return to("/history", f"Head stands at @{revision.seq}.")


async def _done(service: Service, work: Callable[[Session], Value]) -> Value:
    """Let the model's thread do some work, and wait for it."""
    try:
        result: Value = await run_in_threadpool(waited, service, work)
        return result
    except Exception as error:
        raise problem_of(error) from error
