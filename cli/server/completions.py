"""`/v1/models`, `/v1/chat/completions` and `/v1/completions`, as OpenAI's clients expect them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse

from cli.server.access import Asker, Served
from cli.server.hearing import Began, Heard, Hearing, Piece
from cli.server.problems import ApiProblem, problem_of
from cli.server.schemas import ChatRequest, CompletionRequest, Sampled
from cli.server.service import Service
from continual.prompts import Chat, Prompt, read_prompt
from continual.serving.asks import Answered, AnswerText, Ask, State, TokenChance
from continual.serving.names import revision_of, served_names

router = APIRouter()
COMPLETION_TOKENS = 16  # as OpenAI's, where a request names no number
PING_S = 15.0
CLIENT_GONE = 499  # as nginx logs it; nobody reads the response
_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.get("/v1/models")
def models(service: Served, _: Asker) -> dict[str, Any]:
    """List the model at head, at base and at each tag; any revision can be asked for."""
    created = int(service.started_at)
    names = served_names(service.store, service.name)
    data = [
        {
            "id": name.name,
            "object": "model",
            "created": created,
            "owned_by": "cedit",
            "root": name.root,
            "parent": name.parent,
            "revision": name.revision,
            "fingerprint": name.fingerprint,
        }
        for name in names
    ]
    return {"object": "list", "data": data}


@router.get("/v1/models/{model}")
def model(service: Served, _: Asker, model: str) -> dict[str, Any]:
    """Tell of the model at any revision."""
    revision = service.store.revision(revision_of(model, service.name))
    return {
        "id": model,
        "object": "model",
        "created": int(service.started_at),
        "owned_by": "cedit",
        "root": service.name,
        "parent": f"{service.name}@base" if revision.seq else None,
        "revision": revision.id,
        "fingerprint": revision.fingerprint,
    }


@router.post("/v1/chat/completions")
async def chat_completions(
    request: Request, service: Served, _: Asker, body: ChatRequest
) -> Response:
    """Answer a chat."""
    prompt = await run_in_threadpool(_chat, service, body)
    count = max(1, body.top_logprobs or 0)
    chances = _chances(service, count if body.logprobs else None)
    tokens_max = body.max_completion_tokens or body.max_tokens
    heard = [_put(service, body, prompt, tokens_max, chances)]
    wording = Wording(body, "chatcmpl", "chat.completion", ChatWords(body.top_logprobs or 0))
    return await _response(request, heard, wording)


@router.post("/v1/completions")
async def completions(
    request: Request, service: Served, _: Asker, body: CompletionRequest
) -> Response:
    """Go on with a text, or with several."""
    if len(body.prompts) > service.limits.prompts_max:
        raise ApiProblem(400, f"{len(body.prompts)} prompts are too many.", "prompt")
    prompts = [_text(prompt) for prompt in body.prompts]
    count = None if body.logprobs is None else max(1, body.logprobs)
    chances = _chances(service, count)
    tokens_max = body.max_tokens or COMPLETION_TOKENS
    heard = [_put(service, body, prompt, tokens_max, chances) for prompt in prompts]
    wording = Wording(body, "cmpl", "text_completion", TextWords(body.logprobs or 0))
    return await _response(request, heard, wording)


# -- asking


def _chat(service: Service, body: ChatRequest) -> Prompt:
    """Return a chat with its pictures, unpacked and held in memory. Raises ApiProblem."""
    messages: Any = [turn.to_json() for turn in body.messages]
    border = service.border()
    try:
        if border is not None:
            messages = border.prompt(messages, ())
        elif any(turn.shows for turn in body.messages):
            raise ApiProblem(
                400, "This model takes texts alone: leave the pictures out.", "messages"
            )
        return Chat.from_json(messages)
    except ValueError as error:
        raise ApiProblem(400, f"messages: {error}", "messages") from None


def _text(prompt: str) -> Prompt:
    try:
        return read_prompt(prompt)
    except ValueError as error:
        raise ApiProblem(400, f"prompt: it {error}", "prompt") from None


def _chances(service: Service, count: int | None) -> int | None:
    limit = service.limits.chances_max
    if count is not None and count > limit:
        raise ApiProblem(400, f"At most {limit} likeliest tokens are told.", "logprobs")
    return count


def _put(
    service: Service, body: Sampled, prompt: Prompt, tokens_max: int | None, chances: int | None
) -> Heard:
    """Put an ask in the model's line. Raises ApiProblem, UnknownModel, UnknownRevision, Busy."""
    limits, count = service.limits, body.n or 1
    if count > limits.answers_max:
        raise ApiProblem(400, f"n is at most {limits.answers_max}.", "n")
    if len(body.stops) > limits.stops_max or any(
        len(stop) > limits.stop_characters_max for stop in body.stops
    ):
        raise ApiProblem(400, "There are too many stop texts, or too long ones.", "stop")
    revision = revision_of(body.model, service.name)
    service.store.revision(revision)
    hearing = Hearing(service.metrics)
    ask = Ask(
        prompt,
        hearing,
        revision,
        body.sampling,
        tokens_max,
        body.stops,
        count,
        chances,
        body.explain,
    )
    service.desk.ask(ask)
    return Heard(ask, hearing)


# -- answering


class ChatWords:
    """The words of chats."""

    def __init__(self, told: int) -> None:
        self._told = told

    def choice(self, index: int, answer: AnswerText) -> dict[str, Any]:
        """Return a whole answer."""
        message = {"role": "assistant", "content": answer.text.strip(), "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(answer.chances),
            "finish_reason": answer.finish,
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the first chunk of an answer."""
        return _delta(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return a chunk with a piece of an answer."""
        return _delta(index, {"content": piece.text}, self._logprobs(piece.chances))

    def closing(self, index: int, finish: str) -> dict[str, Any]:
        """Return the last chunk of an answer."""
        return {**_delta(index, {}), "finish_reason": finish}

    def _logprobs(self, chances: Sequence[TokenChance]) -> dict[str, Any] | None:
        if not chances:
            return None
        return {"content": [self._chance(chance) for chance in chances], "refusal": None}

    def _chance(self, chance: TokenChance) -> dict[str, Any]:
        likeliest = chance.likeliest[: self._told]
        top = [_token(text, logprob) for text, logprob in likeliest]
        return {**_token(chance.text, chance.logprob), "top_logprobs": top}


class TextWords:
    """The words of texts that go on."""

    def __init__(self, told: int) -> None:
        self._told = told

    def choice(self, index: int, answer: AnswerText) -> dict[str, Any]:
        """Return a whole answer."""
        return {
            "index": index,
            "text": answer.text,
            "logprobs": self._logprobs(answer.chances),
            "finish_reason": answer.finish,
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return nothing: the first chunk is a piece."""
        return None

    def piece(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return a chunk with a piece of an answer."""
        logprobs = self._logprobs(piece.chances)
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": None}

    def closing(self, index: int, finish: str) -> dict[str, Any]:
        """Return the last chunk of an answer."""
        return {"index": index, "text": "", "logprobs": None, "finish_reason": finish}

    def _logprobs(self, chances: Sequence[TokenChance]) -> dict[str, Any] | None:
        if not chances:
            return None
        offsets = [0]
        for chance in chances:
            offsets.append(offsets[-1] + len(chance.text))
        return {
            "tokens": [chance.text for chance in chances],
            "token_logprobs": [chance.logprob for chance in chances],
            "top_logprobs": [dict(chance.likeliest[: self._told]) for chance in chances],
            "text_offset": offsets[:-1],
        }


def _delta(
    index: int, delta: Mapping[str, Any], logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": dict(delta), "logprobs": logprobs, "finish_reason": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8"))}


@dataclass(frozen=True)
class Wording:
    """The form of a response, and its head."""

    body: Sampled
    prefix: str
    kind: str
    words: ChatWords | TextWords
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, identity: str, state: State, kind: str | None = None) -> dict[str, Any]:
        """Return the fields that every object of the response has."""
        return {
            "id": f"{self.prefix}-{identity}",
            "object": kind or self.kind,
            "created": self.created,
            "model": self.body.model,
            "system_fingerprint": state.fingerprint,
        }


async def _response(request: Request, heard: list[Heard], wording: Wording) -> Response:
    """Answer as a whole, or as a stream. An error before the answer begins has its own status."""
    identity = heard[0].ask.id
    headers = {"X-Request-Id": f"{wording.prefix}-{identity}"}
    if wording.body.stream:
        try:
            first = await heard[0].hearing.next()
        except Exception as error:
            _cancel(heard)
            raise problem_of(error) from error
        assert isinstance(first, Began)
        events = _streamed(heard, wording, first)
        return StreamingResponse(
            events, media_type="text/event-stream", headers={**headers, **_STREAM_HEADERS}
        )
    began = time.monotonic()
    try:
        all_answered = await _answered(request, heard)
    except BaseException as error:
        _cancel(heard)
        raise (problem_of(error) if isinstance(error, Exception) else error) from error
    answers = [answer for answered in all_answered for answer in answered.answers]
    body = {
        **wording.head(identity, all_answered[0].state),
        "choices": [wording.words.choice(i, answer) for i, answer in enumerate(answers)],
        "usage": _usage(all_answered),
        "cedit": _told(heard, all_answered, wording.body.explain),
    }
    headers["openai-processing-ms"] = str(round(1000 * (time.monotonic() - began)))
    return JSONResponse(body, headers=headers)


async def _answered(request: Request, heard: Sequence[Heard]) -> list[Answered]:
    """Wait for all answers. Raises ApiProblem when the client has gone, and the error of an ask
    that failed."""
    answering = asyncio.gather(*(one.answered() for one in heard))
    leaving = asyncio.ensure_future(_gone(request))
    try:
        either: set[asyncio.Future[Any]] = {answering, leaving}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return await answering
        raise ApiProblem(CLIENT_GONE, "The client has gone.")
    finally:
        answering.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    """Wait until the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _streamed(heard: list[Heard], wording: Wording, first: Began) -> AsyncIterator[str]:
    """Yield the events of a stream. Answers to several prompts follow one another."""
    kind = "chat.completion.chunk" if wording.prefix == "chatcmpl" else wording.kind
    head = wording.head(heard[0].ask.id, first.state, kind)
    has_usage = (
        wording.body.stream_options is not None and wording.body.stream_options.include_usage
    )

    def chunk(choices: list[dict[str, Any]], **more: Any) -> str:
        usage = {"usage": None} if has_usage else {}
        return _event({**head, "choices": choices, **usage, **more})

    all_answered: list[Answered] = []
    try:
        start = 0
        for one in heard:
            for index in range(one.ask.count):
                if (opening := wording.words.opening(start + index)) is not None:
                    yield chunk([opening])
            async for event in _pinged(one.hearing):
                if event is None:
                    yield ": ping\n\n"
                elif isinstance(event, Piece):
                    yield chunk([wording.words.piece(start + event.index, event)])
                elif isinstance(event, Answered):
                    all_answered.append(event)
            for index, answer in enumerate(all_answered[-1].answers):
                yield chunk([wording.words.closing(start + index, answer.finish)])
            start += one.ask.count
        told = _told(heard, all_answered, wording.body.explain)
        if has_usage:
            yield chunk([], usage=_usage(all_answered), cedit=told)
        elif wording.body.explain:
            yield chunk([], cedit=told)
        yield "data: [DONE]\n\n"
    except Exception as error:
        yield _event(problem_of(error).body)
    finally:
        _cancel(heard)


async def _pinged(hearing: Hearing) -> AsyncIterator[Began | Piece | Answered | None]:
    """Yield the events of a hearing, and None where nothing was heard for a while."""
    waiting = asyncio.ensure_future(hearing.next())
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=PING_S)
            if not done:
                yield None
                continue
            event = waiting.result()
            yield event
            if isinstance(event, Answered):
                return
            waiting = asyncio.ensure_future(hearing.next())
    finally:
        waiting.cancel()


def _cancel(heard: Sequence[Heard]) -> None:
    """End whatever is still being answered: nobody waits for it."""
    for one in heard:
        one.ask.cancelled.set()


def _event(record: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(record, ensure_ascii=False)}\n\n"


def _usage(all_answered: Sequence[Answered]) -> dict[str, int]:
    prompt = sum(answered.prompt_tokens for answered in all_answered)
    answer = sum(answered.answer_tokens for answered in all_answered)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _told(
    heard: Sequence[Heard], all_answered: Sequence[Answered], explains: bool
) -> dict[str, Any]:
    """Return our own part of a response: the state, the receipts, and which edits spoke."""
    state = all_answered[0].state
    told: dict[str, Any] = {
        "revision": state.revision,
        "seq": state.seq,
        "receipts": [one.ask.id for one in heard],
    }
    if explains:
        answers = [answer for answered in all_answered for answer in answered.answers]
        told["spoke"] = [[asdict(token) for token in answer.spoken] for answer in answers]
        told["spoke_in_prompt"] = [
            [asdict(token) for token in answer.spoken_in_prompt] for answer in answers
        ]
        told["in_weights"] = all_answered[0].in_weights
    return told
