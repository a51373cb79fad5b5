"""`/v1/feedback` and `/v1/corrections`: feedback, corrections, and the decisions on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from cli.server.access import Approver, Proposer, Served
from cli.server.problems import ApiProblem
from cli.server.service import Service
from continual.editors.chains import chain_of
from continual.errors import CeditError
from continual.prompts import Prompt, prompt_json, read_prompt
from continual.readers import read_record
from continual.requests import Request
from continual.review.applying import revert_item
from continual.review.items import QueueItem
from continual.review.queue import KEY_CHARACTERS_MAX, Added, Proposal
from continual.review.states import APPROVED, PENDING, REJECTED, STATES
from continual.review.telling import told, told_whole
from continual.session import Session

router = APIRouter()
Result = TypeVar("Result")
Number = Annotated[int, Path(ge=1, le=10**9)]
Text = Annotated[str, Field(max_length=65_536)]
Reason = Annotated[str, Field(max_length=2000)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=KEY_CHARACTERS_MAX)]


class Body(BaseModel):
    """A body whose every field is known."""

    model_config = ConfigDict(extra="forbid")


class Feedback(Body):
    """A person's word on an answer."""

    receipt: Annotated[str, Field(max_length=128)] | None = None
    """The id of the answer, as the response had it."""
    verdict: Literal["right", "wrong"] = "wrong"
    answer: Text | None = None
    """The right answer."""
    prompt: Text | None = None
    messages: list[dict[str, Any]] | None = None
    subject: Text | None = None
    relation: Text | None = None
    comment: Reason = ""


class Corrections(Body):
    """Corrections that are handed in, in any format that `cedit apply` reads."""

    correction: dict[str, Any] | None = None
    corrections: list[dict[str, Any]] = []
    why: Reason = ""
    editor: Annotated[str, Field(max_length=512)] | None = None


class Decision(Body):
    """A decision about corrections."""

    why: Reason = ""
    editor: Annotated[str, Field(max_length=512)] | None = None


class Decisions(Decision):
    """A decision about many corrections: all or none."""

    numbers: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    decision: Literal["approve", "reject", "reopen"]


class Amendment(Decision):
    """Another content for a correction."""

    correction: dict[str, Any]


# -- handing in


@router.post("/v1/feedback")
def feedback(service: Served, who: Proposer, body: Feedback, key: Key = None) -> Response:
    """Take a person's word on an answer: a wrong one becomes a correction, or waits for one."""
    prompt, origin = _origin(service, body)
    service.keep_pictures(prompt_json(prompt))
    if body.verdict == "right":
        return JSONResponse({"object": "feedback", "verdict": "right", "correction": None})
    request = None
    if body.answer is not None:
        fields = {"subject": body.subject, "relation": body.relation}
        request = _request(
            {"prompt": prompt, "target_new": body.answer, **{k: v for k, v in fields.items() if v}}
        )
    proposal = Proposal(prompt, request, who.name, body.comment, "feedback", origin, key=key)
    (added,) = service.queue.add([proposal])
    return _added([added])


@router.post("/v1/corrections")
def propose(service: Served, who: Proposer, body: Corrections, key: Key = None) -> Response:
    """Take corrections in. With an idempotency key, the same again is answered by the first."""
    records = [*([] if body.correction is None else [body.correction]), *body.corrections]
    if not records:
        raise ApiProblem(400, "Give a correction, or corrections.", "corrections")
    if len(records) > service.limits.corrections_max:
        raise ApiProblem(400, f"At most {service.limits.corrections_max} at once.", "corrections")
    editor = named_editor(service, body.editor)
    requests = [request for record in records for request in _requests(service, record)]
    proposals = [
        Proposal.of(
            request,
            who.name,
            why=body.why,
            editor=editor,
            key=None if key is None else f"{key}/{place}" if place else key,
        )
        for place, request in enumerate(requests)
    ]
    return _added(service.queue.add(proposals))


def _origin(service: Service, body: Feedback) -> tuple[Prompt, dict[str, Any]]:
    """Return the prompt of the answer that feedback is about, and the answer as far as it is
    known. Raises ApiProblem."""
    receipt = None if body.receipt is None else service.desk.receipts.find(body.receipt)
    origin: dict[str, Any] = {"verdict": body.verdict}
    if body.receipt is not None:
        origin["receipt"] = body.receipt
    if receipt is not None:
        origin |= {"answer": receipt.answer, "revision": receipt.revision}
        return receipt.prompt, {**origin, "fingerprint": receipt.fingerprint}
    value = body.messages if body.messages is not None else body.prompt
    if value is None:
        raise ApiProblem(
            404, "There is no such receipt any more: give the prompt or messages, too.", "receipt"
        )
    border = service.border()
    try:
        return read_prompt(value if border is None else border.prompt(value, ())), origin
    except ValueError as error:
        raise ApiProblem(400, f"the prompt {error}", "prompt") from None


def _request(record: Mapping[str, Any]) -> Request:
    return Request.from_json(record)


def _requests(service: Service, record: Mapping[str, Any]) -> list[Request]:
    """Return the requests of a record, with their pictures in the store: the queue shows them."""
    border = service.border()
    requests = list(read_record(record if border is None else border.of(record)))
    for request in requests:
        service.keep_pictures(request.to_json())
    return requests


def named_editor(service: Service, name: str | None) -> str | None:
    """Return a chain of editors as it was named. Raises ApiProblem for an unknown one."""
    if name is not None:
        try:
            chain_of(name, service.session.task.name)
        except CeditError as error:
            raise ApiProblem(400, str(error), "editor") from None
    return name


def _added(added: list[Added]) -> Response:
    data = [{**told(one.item), "repeated": one.is_repeat} for one in added]
    is_new = any(not one.is_repeat for one in added)
    return JSONResponse({"object": "list", "data": data}, 201 if is_new else 200)


# -- looking


@router.get("/v1/corrections")
def list_corrections(
    service: Served,
    _: Proposer,
    state: Annotated[str | None, Query(max_length=256)] = None,
    after: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """List the corrections in some states (all unless named), in the order in which they came."""
    states = STATES if state is None else tuple(state.split(","))
    if strangers := set(states) - set(STATES):
        raise ApiProblem(400, f"There is no state {min(strangers)!r}.", "state")
    items = [item for item in service.queue.items(states) if item.number > after]
    page = items[: min(limit, service.limits.page_max)]
    data = [told(item) for item in page]
    counts = service.queue.counts()
    return {"object": "list", "data": data, "has_more": len(items) > len(page), "counts": counts}


@router.get("/v1/corrections/{number}")
def show(service: Served, _: Proposer, number: Number) -> dict[str, Any]:
    """Tell all about a correction: its content, its events, its proof, and its conflicts."""
    return told_whole(service.queue.get(number), service.in_force)


# -- deciding


@router.post("/v1/corrections/decide")
def decide(service: Served, who: Approver, body: Decisions) -> dict[str, Any]:
    """Approve, reject or reopen many corrections, all or none."""
    if len(body.numbers) > service.limits.corrections_max:
        raise ApiProblem(400, f"At most {service.limits.corrections_max} at once.", "numbers")
    state = {"approve": APPROVED, "reject": REJECTED, "reopen": PENDING}[body.decision]
    numbers = list(dict.fromkeys(body.numbers))
    editor = named_editor(service, body.editor)
    items = service.queue.decide(numbers, state, who.name, body.why, editor)
    service.writer.wake()
    return {"object": "list", "data": [told(item) for item in items]}


@router.post("/v1/corrections/{number}/{decision}")
def act(
    service: Served,
    who: Approver,
    number: Number,
    decision: Literal["approve", "reject", "reopen", "hold", "release", "revert", "try"],
    body: Decision | None = None,
) -> dict[str, Any]:
    """Decide about a correction; keep it while it is open before a person, or give it back; take
    it out of the model; or try it out, which changes nothing."""
    body = body or Decision()
    if decision in ("approve", "reject", "reopen"):
        all_of_it = Decisions(numbers=[number], decision=decision, why=body.why, editor=body.editor)
        return dict(decide(service, who, all_of_it)["data"][0])
    if decision == "hold":
        return told(service.queue.hold(number, who.name))
    if decision == "release":
        return told(service.queue.release(number, who.name))
    if decision == "try":
        return try_out(service, number, named_editor(service, body.editor))
    return told(revert(service, number, who.name, body.why))


@router.patch("/v1/corrections/{number}")
def amend(service: Served, who: Approver, number: Number, body: Amendment) -> dict[str, Any]:
    """Give an open correction another content."""
    editor = named_editor(service, body.editor)
    requests = _requests(service, body.correction)
    if len(requests) != 1:
        raise ApiProblem(400, "Give one correction.", "correction")
    item = service.queue.amend(number, requests[0], who.name, body.why, editor)
    return told_whole(item, service.in_force)


def revert(service: Service, number: int, who: str, why: str) -> QueueItem:
    """Take a correction out of the model, and wait for it."""
    service.queue.get(number)
    return waited(service, lambda session: revert_item(session, service.queue, number, who, why))


def try_out(service: Service, number: int, editor: str | None = None) -> dict[str, Any]:
    """Make a correction's edit, measure it, and take it off again; wait for it."""
    item = service.queue.get(number)
    request = item.request
    if request is None:
        raise ApiProblem(409, f"Correction {number} does not say what is right.")
    chain = editor or item.editor

    def tried(session: Session) -> dict[str, Any]:
        changes = {} if chain is None else {"chain": chain_of(chain, session.task.name)}
        return session.try_out(request, session.settings(**changes)).to_json()

    return {"object": "tryout", "number": number, "editors": chain, **waited(service, tried)}


def waited(service: Service, work: Callable[[Session], Result]) -> Result:
    """Let the model's thread do some work, and wait for its result."""
    future: Future[Result] = service.desk.do(work)
    return future.result()
