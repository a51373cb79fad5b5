"""Answers from the model's thread, as an endpoint hears them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cli.server.metrics import Metrics
from continual.serving.asks import Answered, Ask, State, TokenChance


@dataclass(frozen=True)
class Began:
    """An answer that begins."""

    state: State
    prompt_tokens: int


@dataclass(frozen=True)
class Piece:
    """A piece of an answer."""

    index: int
    text: str
    chances: Sequence[TokenChance]


Event = Began | Piece | Answered | Exception


class Hearing:
    """Hears one ask: puts its events in a queue of the server's loop, and counts them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._asked_at = time.monotonic()
        self._first_at: float | None = None

    def began(self, state: State, prompt_tokens: int) -> None:
        """See `Hearer.began`."""
        self._metrics.prompt_tokens.inc(prompt_tokens)
        self._put(Began(state, prompt_tokens))

    def piece(self, index: int, text: str, chances: Sequence[TokenChance]) -> None:
        """See `Hearer.piece`."""
        if self._first_at is None:
            self._first_at = time.monotonic()
            self._metrics.first_token.observe(self._first_at - self._asked_at)
        self._put(Piece(index, text, chances))

    def ended(self, answered: Answered) -> None:
        """See `Hearer.ended`."""
        now, count = time.monotonic(), answered.answer_tokens
        self._metrics.generation_tokens.inc(count)
        self._metrics.answer.observe(now - self._asked_at)
        if self._first_at is not None and count > 1:
            self._metrics.token.observe((now - self._first_at) / (count - 1))
        self._put(answered)

    def failed(self, error: Exception) -> None:
        """See `Hearer.failed`."""
        self._put(error)

    def _put(self, event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended, and nobody hears
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Began | Piece | Answered:
        """Return the next event. Raises the error of an ask that failed."""
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event

    async def events(self) -> AsyncIterator[Began | Piece | Answered]:
        """Yield the events up to the end."""
        while True:
            event = await self.next()
            yield event
            if isinstance(event, Answered):
                return


@dataclass(frozen=True)
class Heard:
    """An ask that was put to the model, and its hearing."""

    ask: Ask
    hearing: Hearing

    async def answered(self) -> Answered:
        """Wait for the whole answer."""
        async for event in self.hearing.events():
            if isinstance(event, Answered):
                return event
        raise AssertionError("an ask ends, or fails")
