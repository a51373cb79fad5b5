"""The pages of the dashboard, and the acts that their forms ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import RedirectResponse, Response
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool

from cli.report import charts
from cli.server.access import Served
from cli.server.corrections import named_editor, revert, try_out, waited
from cli.server.dashboard.forms import Form, form_of
from cli.server.dashboard.sessions import (
    COOKIE,
    Sessions,
    Visitor,
    require_mark,
    set_cookie,
)
from cli.server.dashboard.showing import STATIC, measured, shown, static
from cli.server.hearing import Heard, Hearing
from cli.server.problems import ApiProblem, problem_of
from cli.server.service import Service
from continual.history.inspection import entry
from continual.prompts import Chat, Prompt, read_prompt
from continual.requests import Request as CorrectionRequest
from continual.review.following import follow
from continual.review.queue import Proposal
from continual.review.states import APPROVED, OPEN, PENDING, REJECTED, STANDING, STATES
from continual.review.telling import told, told_whole
from continual.serving.asks import Answered, Ask
from continual.serving.tokens import Role, Token
from continual.session import Session
from store import Revision
from store.check import verify_path

router = APIRouter(include_in_schema=False)
Value = TypeVar("Value")
Number = Annotated[int, Path(ge=1, le=10**9)]
ANSWER_TOKENS = 200
REVISIONS_SHOWN = 200
ITEMS_SHOWN = 500
_SEE_OTHER = 303
_DECIDED = {"approve": APPROVED, "reject": REJECTED, "reopen": PENDING}


def sessions_of(request: Request) -> Sessions:
    """Return the logins of a request's application."""
    sessions = request.app.state.sessions
    assert isinstance(sessions, Sessions)
    return sessions


def visitor_of(request: Request, service: Served) -> Visitor:
    """Return the person who makes a request."""
    return sessions_of(request).visitor(request, service)


Person = Annotated[Visitor, Depends(visitor_of)]
Sent = Annotated[Form, Depends(form_of)]


def _require(visitor: Visitor, role: Role, form: Form | None = None) -> None:
    """Refuse a person without the rights of a role, and a form that is not from our pages."""
    if not visitor.may(role):
        raise ApiProblem(403 if visitor.is_known else 401, f"This needs the role {role.name}.")
    if form is not None:
        require_mark(visitor, form["mark"])


def _to(path: str, message: str = "") -> Response:
    """Send a browser to a page, with a message."""
    return RedirectResponse(path + (f"?message={quote(message)}" if message else ""), _SEE_OTHER)


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
    response = _to("/queue" if owner.rights >= Role.propose else "/")
    identity = sessions_of(request).begin(owner)
    set_cookie(response, identity, is_secure=request.url.scheme == "https")
    return response


@router.post("/logout")
def logout(request: Request, visitor: Person, form: Sent) -> Response:
    """End a session."""
    require_mark(visitor, form["mark"])
    sessions_of(request).end(request)
    response = _to("/")
    response.delete_cookie(COOKIE, path="/")
    return response


# -- asking


@router.get("/")
def ask_page(service: Served, visitor: Person, message: str = "") -> Response:
    """Show the form of a question."""
    if not (service.is_open or visitor.is_known):
        return _to("/login")
    return _ask_page(service, visitor, message=message)


def _ask_page(service: Service, visitor: Visitor, status: int = 200, **values: Any) -> Response:
    defaults = {
        "prompt": "",
        "is_chat": service.chats,
        "left": "base",
        "right": "head",
        "answers": (),
        "names": ["base", "head", *sorted(service.store.tags())],
        "chats": service.chats,
    }
    return shown("ask", service, visitor, status, **{**defaults, **values})


@router.post("/")
async def ask(service: Served, visitor: Person, form: Sent) -> Response:
    """Answer a question at two revisions, side by side."""
    if not (service.is_open or visitor.is_known):
        raise ApiProblem(401, "Log in to ask.")
    asked: dict[str, Any] = {"prompt": form["prompt"], "is_chat": bool(form["chat"])}
    names: dict[str, Any] = {"left": form["left"] or "base", "right": form["right"] or "head"}
    try:
        prompt = _prompt(form)
        heard = [_put(service, prompt, name) for name in names.values()]
        answers = [_shown_answer(service, one, await one.answered()) for one in heard]
    except Exception as error:
        problem = problem_of(error)
        return _ask_page(
            service, visitor, problem.status, **asked, **names, message=problem.message
        )
    return _ask_page(service, visitor, **asked, **names, answers=answers)


def _prompt(form: Form) -> Prompt:
    try:
        text = read_prompt(form["prompt"])
        return Chat.asking(str(text)) if form["chat"] else text
    except ValueError as error:
        raise ApiProblem(400, f"The question {error}.") from None


def _put(service: Service, prompt: Prompt, revision: str) -> Heard:
    service.store.revision(revision)
    hearing = Hearing(service.metrics)
    ask = Ask(prompt, hearing, revision, tokens_max=ANSWER_TOKENS, explains=True)
    service.desk.ask(ask)
    return Heard(ask, hearing)


def _shown_answer(service: Service, heard: Heard, answered: Answered) -> dict[str, Any]:
    (answer,) = answered.answers
    ids = dict.fromkeys(e.request for token in answer.spoken for e in token.edits if e.request)
    return {
        "name": heard.ask.revision,
        "text": answer.text.strip(),
        "finish": answer.finish,
        "state": answered.state,
        "receipt": heard.ask.id,
        "in_weights": answered.in_weights,
        "spoken": answer.spoken,
        "edits": [_edit(service, identity) for identity in ids],
    }


def _edit(service: Service, identity: str) -> dict[str, Any]:
    item = service.queue.of_request(identity)
    record = service.store.request(identity)
    number = None if item is None else item.number
    return {"id": identity, "number": number, "target": record["target_new"]}


@router.post("/propose")
def propose(service: Served, visitor: Person, form: Sent) -> Response:
    """Make a correction of an answer that was shown."""
    _require(visitor, Role.propose, form)
    receipt = service.desk.receipts.find(form["receipt"])
    if receipt is None:
        raise ApiProblem(404, "This answer is too old: ask again.")
    answer, request = form.filled("answer"), None
    if answer is not None:
        request = _request(form, receipt.prompt)
    origin = {"verdict": "wrong", "receipt": receipt.id, "answer": receipt.answer}
    origin |= {"revision": receipt.revision, "fingerprint": receipt.fingerprint}
    proposal = Proposal(
        receipt.prompt, request, visitor.token.name, form["why"], "dashboard", origin
    )
    (added,) = service.queue.add([proposal])
    return _to(f"/corrections/{added.item.number}", f"Correction {added.item.number} is there.")


def _request(form: Form, prompt: Prompt) -> CorrectionRequest:
    fields = {name: form.filled(name) for name in ("subject", "relation")}
    rephrases = [line for line in form["rephrases"].splitlines() if line.strip()]
    record: dict[str, object] = {"prompt": prompt, "target_new": form["answer"].strip("\n")}
    record |= {name: value for name, value in fields.items() if value is not None}
    return CorrectionRequest.from_json(
        {**record, **({"rephrases": rephrases} if rephrases else {})}
    )


# -- the queue


@router.get("/queue")
def queue_page(service: Served, visitor: Person, state: str = "", message: str = "") -> Response:
    """List the corrections in a state."""
    if not visitor.may(Role.propose):
        return _to("/login", "Log in to see the queue.")
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
    _require(visitor, Role.approve, form)
    numbers, decision = form.numbers("number"), form["decision"]
    if decision not in _DECIDED or not numbers:
        return _to("/queue", "Mark corrections first.")
    service.queue.decide(numbers, _DECIDED[decision], visitor.token.name, form["why"])
    service.writer.wake()
    return _to("/queue", f"{len(numbers)} {_DECIDED[decision]}.")


# -- one correction


@router.get("/corrections/{number}")
def correction_page(
    service: Served, visitor: Person, number: Number, message: str = ""
) -> Response:
    """Show a correction with all that is on record."""
    if not visitor.may(Role.propose):
        return _to("/login", "Log in to see corrections.")
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
    _require(visitor, Role.approve, form)
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
        return _to(page, f"It is {_DECIDED[decision]}.")
    if decision == "amend":
        request = _request(form, service.queue.get(number).prompt)
        service.queue.amend(number, request, who, why, editor)
        return _to(page, "Amended.")
    if decision in ("hold", "release"):
        change = service.queue.hold if decision == "hold" else service.queue.release
        change(number, who)
        return _to(page)
    if decision == "try":
        tried = try_out(service, number, editor)
        values: dict[str, Any] = {"tried": tried, "tried_rates": measured(tried["rates"])}
        return _correction_page(service, visitor, number, **values)
    if decision == "revert":
        revert(service, number, who, why)
        return _to(page, "It is taken out of the model.")
    raise ApiProblem(400, "There is no such act.")


# -- history and health


@router.get("/history")
async def history_page(service: Served, visitor: Person, message: str = "") -> Response:
    """Show the revisions, and the metrics over them."""
    if not visitor.may(Role.propose):
        return _to("/login", "Log in to see the history.")

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


@router.post("/history")
async def move_head(service: Served, visitor: Person, form: Sent) -> Response:
    """Roll back to a revision, or give one a name."""
    _require(visitor, Role.admin, form)
    name = form["revision"]
    revision = service.store.revision(name)

    def moved(session: Session) -> None:
        session.rollback(revision.id)
        follow(service.queue, service.facts.report)

    if form["decision"] == "tag":
        tag = form["tag"].strip()
        await _done(service, lambda session: session.tag(tag, revision.id))
        return _to("/history", f"@{revision.seq} is {tag} now.")
    await _done(service, moved)
    return _to("/history", f"Head stands at @{revision.seq}.")


async def _done(service: Service, work: Callable[[Session], Value]) -> Value:
    """Let the model's thread do some work, and wait for it."""
    try:
        result: Value = await run_in_threadpool(waited, service, work)
        return result
    except Exception as error:
        raise problem_of(error) from error


@router.get("/health/page")
async def health_page(service: Served, visitor: Person, message: str = "") -> Response:
    """Show what is broken, the metrics, the line, and the sizes."""
    if not visitor.may(Role.propose):
        return _to("/login", "Log in to see the server's health.")
    return await _health_page(service, visitor, message=message)


async def _health_page(service: Service, visitor: Visitor, **values: Any) -> Response:
    report = await run_in_threadpool(lambda: service.facts.report)
    defaults = {
        "report": report,
        "rates": measured(report.rates.to_json()),
        "desk": service.desk,
        "problems": None,
        "journal_bytes": service.facts.journal_bytes,
    }
    return shown("health", service, visitor, **{**defaults, **values})


@router.post("/health/page")
async def verify(service: Served, visitor: Person, form: Sent) -> Response:
    """Read the whole store back."""
    _require(visitor, Role.admin, form)
    problems = await run_in_threadpool(verify_path, service.store.path)
    return await _health_page(service, visitor, problems=problems)


# -- settings


@router.get("/settings")
def settings_page(service: Served, visitor: Person, message: str = "") -> Response:
    """Show the tokens and the limits."""
    if not visitor.may(Role.admin):
        return _to("/login", "Log in as an administrator to see the settings.")
    return _settings_page(service, visitor, message=message)


def _settings_page(service: Service, visitor: Visitor, **values: Any) -> Response:
    defaults: dict[str, Any] = {
        "tokens": service.tokens.tokens,
        "roles": list(Role.__members__),
        "limits": service.limits,
        "hosts": sorted(service.hosts),
        "is_open": service.is_open,
        "made": None,
    }
    return shown("settings", service, visitor, **{**defaults, **values})


@router.post("/settings")
def change_tokens(service: Served, visitor: Person, form: Sent) -> Response:
    """Make a token, or remove one."""
    _require(visitor, Role.admin, form)
    made: Token | None = None
    try:
        if form["decision"] == "remove":
            service.tokens = service.tokens.without(form["name"])
        else:
            service.tokens, made = service.tokens.added(form["name"].strip(), form["role"])
    except Exception as error:
        return _settings_page(service, visitor, message=problem_of(error).message)
    return _settings_page(service, visitor, made=made)


def show_problem(request: Request, problem: ApiProblem) -> Response:
    """Return the page of a problem."""
    service = request.app.state.service
    visitor = sessions_of(request).visitor(request, service)
    if problem.status == 401:
        return _to("/login", problem.message)
    return shown("problem", service, visitor, problem.status, text=problem.message)
