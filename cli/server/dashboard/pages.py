"""The dashboard: files, logging in, the queue, and one correction; the other pages stand beside."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from cli.server.access import Served
from cli.server.corrections import named_editor, revert, try_out
from cli.server.dashboard import asking, past, upkeep
from cli.server.dashboard.asking import request_of
from cli.server.dashboard.forms import Form
from cli.server.dashboard.sessions import COOKIE, Visitor, require_mark, set_cookie
from cli.server.dashboard.showing import STATIC, measured, shown, static
from cli.server.dashboard.visits import Number, Person, Sent, require, sessions_of, to
from cli.server.problems import ApiProblem, problem_of
from cli.server.service import Service
from continual.review.states import APPROVED, OPEN, PENDING, REJECTED, STANDING, STATES
from continual.review.telling import told, told_whole
from continual.serving.tokens import Role

router = APIRouter(include_in_schema=False)
for _pages in (asking, past, upkeep):
    router.include_router(_pages.router)
ITEMS_SHOWN = 500
_DECIDED = {"approve": APPROVED, "reject": REJECTED, "reopen": PENDING}


@router.get("/static/{name}")
def file(name: str) -> Response:
    """Return a style or a script."""
    if name not in STATIC:
        raise ApiProblem(404, "There is no such file.")
    headers = {"Cache-Control": "max-age=300"}
    return Response(static(name), media_type=STATIC[name], headers=headers)


# -- logging in


@router.get("/login")
def login_page(service: Served, visitor: Person, message: str = "") -> Response:
    """Ask for a token."""
    return shown("login", service, visitor, message=message)


@router.post("/login")
def login(request: Request, service: Served, visitor: Person, form: Sent) -> Response:
    """Begin a session for the owner of a token."""
    owner = service.tokens.owner(form["token"].strip())
    if owner is None:
        return shown("login", service, visitor, 401, message="No token of this server is this one.")
    response = to("/queue" if owner.rights >= Role.propose else "/")
    identity = sessions_of(request).begin(owner)
    set_cookie(response, identity, is_secure=request.url.scheme == "https")
    return response


@router.post("/logout")
def logout(request: Request, visitor: Person, form: Sent) -> Response:
    """End a session."""
    require_mark(visitor, form["mark"])
    sessions_of(request).end(request)
    response = to("/")
    response.delete_cookie(COOKIE, path="/")
    return response


# -- the queue


@router.get("/queue")
def queue_page(service: Served, visitor: Person, state: str = "", message: str = "") -> Response:
    """List the corrections in a state."""
    if not visitor.may(Role.propose):
        return to("/login", "Log in to see the queue.")
    states = (state,) if state in STATES else tuple(OPEN)
    items = service.queue.items(states)
    listed = items[-ITEMS_SHOWN:] if state in STANDING else items[:ITEMS_SHOWN]
    conflicting = {
        item.number
        for item in listed
        if item.request is not None
        and item.state in OPEN
        and service.in_force.conflicts(item.request)
    }
    return shown(
        "queue",
        service,
        visitor,
        items=[told(item) for item in listed],
        unlisted=len(items) - len(listed),
        conflicting=conflicting,
        state=state if state in STATES else "",
        message=message,
    )


@router.post("/queue")
def decide_many(service: Served, visitor: Person, form: Sent) -> Response:
    """Decide about the corrections that are marked."""
    require(visitor, Role.approve, form)
    numbers, decision = form.numbers("number"), form["decision"]
    if decision not in _DECIDED or not numbers:
        return to("/queue", "Mark corrections first.")
    service.queue.decide(numbers, _DECIDED[decision], visitor.token.name, form["why"])
    service.writer.wake()
    return to("/queue", f"{len(numbers)} {_DECIDED[decision]}.")


# -- one correction


@router.get("/corrections/{number}")
def correction_page(
    service: Served, visitor: Person, number: Number, message: str = ""
) -> Response:
    """Show a correction with all that is on record."""
    if not visitor.may(Role.propose):
        return to("/login", "Log in to see corrections.")
    return _correction_page(service, visitor, number, message=message)


def _correction_page(
    service: Service, visitor: Visitor, number: int, status: int = 200, **values: Any
) -> Response:
    record = told_whole(service.queue.get(number), service.in_force)
    turned = record["proof"].get("turned") or {}
    defaults = {
        "item": record,
        "is_open": record["state"] in OPEN,
        "stands": record["state"] in STANDING,
        "rates": measured(record["proof"].get("rates") or {}),
        "broke": list(turned.values()).count(False),
        "recovered": list(turned.values()).count(True),
        "editors": service.editors,
        "tried": None,
        "message": "",
    }
    return shown("correction", service, visitor, status, **{**defaults, **values})


@router.post("/corrections/{number}")
async def act(service: Served, visitor: Person, number: Number, form: Sent) -> Response:
    """Do what a correction's form asks for."""
    require(visitor, Role.approve, form)
    try:
        return await run_in_threadpool(_act, service, visitor, number, form)
    except Exception as error:
        problem = problem_of(error)
        if problem.status == 404:
            raise problem from error
        return _correction_page(service, visitor, number, problem.status, message=problem.message)


def _act(service: Service, visitor: Visitor, number: int, form: Form) -> Response:
    who, why, decision = visitor.token.name, form["why"], form["decision"]
    editor = named_editor(service, form.filled("editor"))
    page = f"/corrections/{number}"
    if decision in _DECIDED:
        service.queue.decide([number], _DECIDED[decision], who, why, editor)
        service.writer.wake()
        return to(page, f"It is {_DECIDED[decision]}.")
    if decision == "amend":
        request = request_of(form, service.queue.get(number).prompt)
        service.queue.amend(number, request, who, why, editor)
        return to(page, "Amended.")
    if decision in ("hold", "release"):
        change = service.queue.hold if decision == "hold" else service.queue.release
        change(number, who)
        return to(page)
    if decision == "try":
        tried = try_out(service, number, editor)
        values: dict[str, Any] = {"tried": tried, "tried_rates": measured(tried["rates"])}
        return _correction_page(service, visitor, number, **values)
    if decision == "revert":
        revert(service, number, who, why)
        return to(page, "It is taken out of the model.")
    raise ApiProblem(400, "There is no such act.")


def show_problem(request: Request, problem: ApiProblem) -> Response:
    """Return the page of a problem."""
    service = request.app.state.service
    visitor = sessions_of(request).visitor(request, service)
    if problem.status == 401:
        return to("/login", problem.message)
    return shown("problem", service, visitor, problem.status, text=problem.message)
