"""The page that asks: a question at two revisions, side by side, streaming where a script is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from cli.server.access import Served
from cli.server.dashboard.forms import Form
from cli.server.dashboard.sessions import Visitor
from cli.server.dashboard.showing import part, shown
from cli.server.dashboard.visits import Person, Sent, require, to
from cli.server.hearing import Heard, Hearing, Piece
from cli.server.problems import ApiProblem, problem_of
from cli.server.service import Service
from continual.prompts import Chat, Prompt, read_prompt
from continual.requests import Request as CorrectionRequest
from continual.review.queue import Proposal
from continual.serving.asks import Answered, AnswerText, Ask
from continual.serving.tokens import Role

router = APIRouter(include_in_schema=False)
ANSWER_TOKENS = 200
STREAM = "text/event-stream"
NAME_CHARACTERS_MAX = 128


@router.get("/")
def ask_page(
    service: Served, visitor: Person, message: str = "", left: str = "", right: str = ""
) -> Response:
    """Show the form of a question."""
    if not (service.is_open or visitor.is_known):
        return to("/login")
    names = {"left": left[:NAME_CHARACTERS_MAX], "right": right[:NAME_CHARACTERS_MAX]}
    given: dict[str, Any] = {side: name for side, name in names.items() if name}
    return _ask_page(service, visitor, message=message, **given)


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
async def ask(request: Request, service: Served, visitor: Person, form: Sent) -> Response:
    """Answer a question at two revisions, side by side; as a stream for the page's script."""
    if not (service.is_open or visitor.is_known):
        raise ApiProblem(401, "Log in to ask.")
    is_stream = STREAM in request.headers.get("accept", "")
    asked: dict[str, Any] = {"prompt": form["prompt"], "is_chat": bool(form["chat"])}
    names: dict[str, Any] = {"left": form["left"] or "base", "right": form["right"] or "head"}
    try:
        prompt = _prompt(form)
        heard = [_put(service, prompt, name) for name in names.values()]
        if is_stream:
            events = _streamed(service, visitor, heard)
            return StreamingResponse(events, media_type=STREAM, headers=_STREAM_HEADERS)
        answers = [_shown_answer(service, one, await one.answered()) for one in heard]
    except Exception as error:
        problem = problem_of(error)
        if is_stream:
            raise problem from error
        return _ask_page(
            service, visitor, problem.status, **asked, **names, message=problem.message
        )
    return _ask_page(service, visitor, **asked, **names, answers=answers)


_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def _streamed(service: Service, visitor: Visitor, heard: list[Heard]) -> AsyncIterator[str]:
    """Yield the pieces of the answers, and for each answer, at its end, its part of the page."""
    try:
        for side, one in enumerate(heard):
            async for event in one.hearing.events():
                if isinstance(event, Piece):
                    yield _event("piece", {"side": side, "text": event.text})
                elif isinstance(event, Answered):
                    answer = _shown_answer(service, one, event)
                    is_last = side == len(heard) - 1
                    html = part("answer", visitor, answer=answer, is_last=is_last)
                    yield _event("answer", {"side": side, "html": html})
    except Exception as error:
        yield _event("problem", {"message": problem_of(error).message})
    finally:
        for one in heard:
            one.ask.cancelled.set()


def _event(kind: str, record: Mapping[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(record)}\n\n"


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
    return {
        "name": heard.ask.revision,
        "text": answer.text.strip(),
        "finish": answer.finish,
        "state": answered.state,
        "receipt": heard.ask.id,
        "in_weights": answered.in_weights,
        "edits": _edits(service, answer),
    }


def _edits(service: Service, answer: AnswerText) -> list[dict[str, Any]]:
    """Return the edits that spoke, each with the tokens at which it did."""
    edits: dict[tuple[str, str], dict[str, Any]] = {}
    for place, tokens in (("prompt", answer.spoken_in_prompt), ("answer", answer.spoken)):
        for token in tokens:
            for spoke in token.edits:
                if (spoke.request, spoke.kind) not in edits:
                    told = {"kind": spoke.kind, "prompt": [], "answer": []}
                    edits[spoke.request, spoke.kind] = {**_edit(service, spoke.request), **told}
                edits[spoke.request, spoke.kind][place].append(token.text)
    return list(edits.values())


def _edit(service: Service, identity: str) -> dict[str, Any]:
    item = service.queue.of_request(identity)
    number = None if item is None else item.number
    record = service.store.request(identity) if identity else {}
    return {"id": identity, "number": number, "target": record.get("target_new", "?")}


@router.post("/propose")
def propose(service: Served, visitor: Person, form: Sent) -> Response:
    """Make a correction of an answer that was shown."""
    require(visitor, Role.propose, form)
    receipt = service.desk.receipts.find(form["receipt"])
    if receipt is None:
        raise ApiProblem(404, "This answer is too old: ask again.")
    answer, request = form.filled("answer"), None
    if answer is not None:
        request = request_of(form, receipt.prompt)
    origin = {"verdict": "wrong", "receipt": receipt.id, "answer": receipt.answer}
    origin |= {"revision": receipt.revision, "fingerprint": receipt.fingerprint}
    proposal = Proposal(
        receipt.prompt, request, visitor.token.name, form["why"], "dashboard", origin
    )
    (added,) = service.queue.add([proposal])
    return to(f"/corrections/{added.item.number}", f"Correction {added.item.number} is there.")


def request_of(form: Form, prompt: Prompt) -> CorrectionRequest:
    """Return the correction of a prompt that a form describes. Raises RequestError."""
    fields = {name: form.filled(name) for name in ("subject", "relation")}
    rephrases = [line for line in form["rephrases"].splitlines() if line.strip()]
    record: dict[str, object] = {"prompt": prompt, "target_new": form["answer"].strip("\n")}
    record |= {name: value for name, value in fields.items() if value is not None}
    return CorrectionRequest.from_json(
        {**record, **({"rephrases": rephrases} if rephrases else {})}
    )
