"""The desk: one thread owns the model, and does one thing after another.

Answers and work on the history wait in one line. An answer is begun and ended at one revision, and
its state is compared at its end; edits are put on between answers, never under one. Asks for one
revision, with prompts of one length, are answered together, with no piece of work between them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, TypeVar

from continual.errors import CeditError
from continual.memory.recall import recall_of
from continual.memory.routing import Route
from continual.out_of_memory import is_out_of_memory
from continual.serving.asks import Answered, AnswerText, Ask, State
from continual.serving.generating import AnswerRow, RowLimits, generate
from continual.serving.receipts import Receipt, Receipts
from continual.serving.speaking import Voices, read_words, spoken_words
from continual.session import Session
from continual.tasks import Question
from continual.tasks.causal import CausalTask
from store import Revision

Result = TypeVar("Result")
WAITING_MAX = 128
ROWS_MAX = 16  # of one call of `generate`
TOKENS_MAX = 4096  # of one answer, whatever is asked for


class Busy(CeditError):
    """More asks than may wait."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} asks are waiting already: ask again in a moment.")


class DeskClosed(CeditError):
    """An ask to a desk that takes no more."""

    def __init__(self, reason: str = "it is closing") -> None:
        super().__init__(f"The model takes no more work ({reason}): start the server again.")


class StateMoved(CeditError):
    """An answer under which the model's state moved."""


@dataclass(frozen=True)
class _Work:
    """A piece of work on the session."""

    do: Callable[[Session], Any]
    future: Future[Any]


@dataclass(frozen=True)
class _EncodedAsk:
    """An ask with the tokens of its prompt."""

    ask: Ask
    ids: tuple[int, ...]


class _Kinds:
    """Tells which asks may be answered together, in one turn."""

    def __init__(self, session: Session) -> None:
        self._store = session.store
        self._has_records = len(session.edited.memory) > 0
        self._revisions: dict[str, str] = {}

    def of(self, encoded: _EncodedAsk) -> object:
        """Return an object that is equal for asks that may be answered together: at one revision,
        with prompts of one length. Raises UnknownRevision."""
        ask = encoded.ask
        if ask.revision not in self._revisions:
            self._revisions[ask.revision] = self._store.revision(ask.revision).id
        if ask.explains:
            return ask.id
        shape = encoded.ids if self._has_records else len(encoded.ids)
        return self._revisions[ask.revision], shape


def _is_ask(job: Ask | _Work) -> bool:
    return isinstance(job, Ask)


class Desk:
    """Answers asks and does work with a session, on a thread of its own."""

    def __init__(
        self,
        session: Session,
        *,
        waiting_max: int = WAITING_MAX,
        rows_max: int = ROWS_MAX,
        tokens_max: int = TOKENS_MAX,
    ) -> None:
        """Raises CeditError for a task other than the causal one."""
        if not isinstance(session.task, CausalTask):
            raise CeditError(
                f"A store of the task {session.task.name} cannot be served: the server answers by "
                "going on with a text or a chat, as models of the causal task do."
            )
        self._session, self._task = session, session.task
        self._waiting_max, self._rows_max, self._tokens_max = waiting_max, rows_max, tokens_max
        self._line: deque[Ask | _Work] = deque()
        self._encoded: dict[int, _EncodedAsk] = {}  # asks of the line, by their objects
        self._changed = threading.Condition()
        self._running = 0
        self._reason: str | None = None  # why nothing more is taken
        self._is_away = False  # from head
        self._voices = Voices(session)
        with session.edited.bare():
            dict(session.edited.base.decoding)  # found once, by passes that belong to no answer
        self.receipts = Receipts()
        self._thread = threading.Thread(target=self._serve, name="cedit-model", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    # -- the line

    @property
    def waiting(self) -> int:
        """The number of asks and pieces of work in the line."""
        return len(self._line)

    @property
    def has_room(self) -> bool:
        """True if another ask would be taken."""
        return len(self._line) < self._waiting_max

    @property
    def running(self) -> int:
        """The number of asks that are being answered."""
        return self._running

    @property
    def fault(self) -> str | None:
        """The reason for which nothing more is taken; None while all is well."""
        if self._reason is None and self._session.is_closed:
            return "the store is closed"
        return self._reason

    def ask(self, ask: Ask) -> None:
        """Put an ask in the line. Raises Busy, DeskClosed."""
        with self._changed:
            self._require_open()
            if len(self._line) >= self._waiting_max:
                raise Busy(len(self._line))
            self._line.append(ask)
            self._changed.notify()

    def do(self, work: Callable[[Session], Result]) -> Future[Result]:
        """Put work in the line: it finds the session at head. Raises DeskClosed."""
        future: Future[Result] = Future()
        with self._changed:
            self._require_open()
            self._line.append(_Work(work, future))
            self._changed.notify()
        return future

    def close(self, reason: str = "it is closing") -> None:
        """Take nothing more, finish the present turn, and refuse whatever waits."""
        with self._changed:
            self._reason = self._reason or reason
            self._changed.notify()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        for job in self._line:
            _refuse(job, DeskClosed(self._reason))
        self._line.clear()

    def _require_open(self) -> None:
        if self.fault is not None:
            raise DeskClosed(self.fault)

    # -- the thread

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            if isinstance(job, _Work):
                self._work(job)
            else:
                self._answer_together(job)

    def _next(self) -> list[_EncodedAsk] | _Work | None:
        """Wait for the next turn: a piece of work, or the first ask of the line with those like it
        in front of the next piece of work; None when the desk closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._line or self._reason is not None)
            if self._reason is not None:
                return None
            if isinstance(self._line[0], _Work):
                work = self._line.popleft()
                assert isinstance(work, _Work)
                return work
            asks = [ask for ask in takewhile(_is_ask, self._line) if isinstance(ask, Ask)]
        group, refused = self._alike(asks)
        gone = {id(ask) for ask in (*(encoded.ask for encoded in group), *refused)}
        with self._changed:
            self._line = deque(job for job in self._line if id(job) not in gone)
            self._running = len(group)
        for place in gone:
            self._encoded.pop(place, None)
        return group

    def _alike(self, asks: Sequence[Ask]) -> tuple[list[_EncodedAsk], list[Ask]]:
        """Return the first ask and those that may be answered together with it, and the asks that
        cannot be answered, which are told so."""
        group: list[_EncodedAsk] = []
        refused: list[Ask] = []
        rows, kinds = 0, _Kinds(self._session)
        for ask in asks:
            try:
                encoded = self._encode(ask)
                kind = kinds.of(encoded)
            except Exception as error:
                refused.append(ask)
                ask.hearer.failed(error)
                continue
            if not group or (kind == kinds.of(group[0]) and rows + ask.count <= self._rows_max):
                group.append(encoded)
                rows += ask.count
        return group, refused

    def _encode(self, ask: Ask) -> _EncodedAsk:
        """Return an ask with its tokens, read once while it waits. Raises DeskClosed for one that
        nobody waits for."""
        if ask.cancelled.is_set():
            raise DeskClosed("nobody waits for the answer")
        if id(ask) not in self._encoded:
            self._encoded[id(ask)] = _EncodedAsk(ask, self._task.opening(ask.prompt))
        return self._encoded[id(ask)]

    def _work(self, work: _Work) -> None:
        if not work.future.set_running_or_notify_cancel():
            return
        try:
            self._come_back()
            work.future.set_result(work.do(self._session))
        except BaseException as error:
            work.future.set_exception(error)
        finally:
            if self._session.is_closed and self._reason is None:
                self._reason = "the store is closed"

    def _come_back(self) -> None:
        """Stand at head, as work on the history needs it."""
        self._session.stand_at_head()
        if self._is_away:
            self._session.forget_run_state()
            self._is_away = False

    # -- answers

    def _answer_together(self, group: Sequence[_EncodedAsk]) -> None:
        try:
            if group:
                self._answer(group)
        except Exception as error:
            for encoded in group:
                encoded.ask.hearer.failed(error)
            if is_out_of_memory(error):
                self._come_back()
        finally:
            self._running = 0

    def _answer(self, group: Sequence[_EncodedAsk]) -> None:
        revision = self._session.store.revision(group[0].ask.revision)
        with ExitStack() as stack:
            fingerprint = self._stand(revision, stack)
            state = State(revision.id, revision.seq, fingerprint)
            limits = [self._limits(encoded) for encoded in group]
            rows = self._rows(group, limits)
            for encoded in group:
                encoded.ask.hearer.began(state, len(encoded.ids))
            tokens_max = max(limit.tokens_max for limit in limits)
            if group[0].ask.explains:
                self._explain(group[0], rows, tokens_max, revision, state)
                return
            for encoded in group:
                self._end_together(encoded, [r for r in rows if r.ask is encoded.ask], state)
            generate(self._session.edited, rows, tokens_max)
            for row in rows:
                row.closed()

    def _end_together(self, encoded: _EncodedAsk, rows: Sequence[AnswerRow], state: State) -> None:
        """End an ask as soon as the last of its rows does."""

        def ended(_: AnswerRow) -> None:
            if all(row.finish is not None for row in rows):
                self._end(encoded, state, [row.closed() for row in rows], 0)

        for row in rows:
            row.on_end = ended

    def _stand(self, revision: Revision, stack: ExitStack) -> str:
        """Put the model at a revision, as long as the stack is open; return its fingerprint."""
        edited = self._session.edited
        if revision.fingerprint == edited.base.fingerprint:
            stack.enter_context(edited.bare())
            return revision.fingerprint
        if edited.fingerprint != revision.fingerprint:
            self._is_away = True
            self._session.stand_at(revision)
        return edited.fingerprint

    def _require_same(self, state: State) -> None:
        """Raise StateMoved unless the model stands where the answer began."""
        edited = self._session.edited
        present = edited.base.fingerprint if edited.is_bare else edited.fingerprint
        if present != state.fingerprint:
            raise StateMoved(
                f"The model moved from {state.fingerprint[:12]} to {present[:12]} under an answer: "
                "this is a bug, please report it."
            )

    def _limits(self, encoded: _EncodedAsk) -> RowLimits:
        base, ask = self._session.edited.base, encoded.ask
        room = self._tokens_max
        if base.context_tokens_max is not None:
            room = min(room, base.context_tokens_max - len(encoded.ids))
        if ask.tokens_max is not None:
            room = min(room, ask.tokens_max)
        stops = (self._task.terminator,) if isinstance(ask.prompt, str) else ()
        ends = self._task.ends(self._session.edited.model)
        return RowLimits(base.tokenizer, ends, stops, max(1, room))

    def _rows(self, group: Sequence[_EncodedAsk], limits: Sequence[RowLimits]) -> list[AnswerRow]:
        model = self._session.edited.model
        return [
            AnswerRow(encoded.ask, index, encoded.ids, model, limit)
            for encoded, limit in zip(group, limits, strict=True)
            for index in range(encoded.ask.count)
        ]

    def _explain(
        self,
        encoded: _EncodedAsk,
        rows: Sequence[AnswerRow],
        tokens_max: int,
        revision: Revision,
        state: State,
    ) -> None:
        """Answer one row after another, each with the edits that spoke."""
        owners, in_weights = self._voices.at(revision)
        route = self._route(encoded)
        answers: list[AnswerText] = []
        for row in rows:
            with self._voices.heard() as heard:
                generate(self._session.edited, [row], tokens_max)
            if route is not None:
                told = read_words(row.words(), route)
            else:
                told = spoken_words(row.prompt_words(), row.words(), heard, owners)
            answer = replace(row.closed(), spoken=told.answer, spoken_in_prompt=told.prompt)
            answers.append(answer)
        self._end(encoded, state, answers, in_weights)

    def _route(self, encoded: _EncodedAsk) -> Route | None:
        edited = self._session.edited
        if not len(edited.memory) or edited.is_bare:
            return None
        route = self._session.route(Question(encoded.ids))
        recall = recall_of(edited)
        if route is None or not recall.room(recall.question(route.place, encoded.ids)):
            return None
        return route

    def _end(
        self,
        encoded: _EncodedAsk,
        state: State,
        answers: Sequence[AnswerText],
        in_weights: int,
    ) -> None:
        self._require_same(state)
        ask, text = encoded.ask, answers[0].text
        self.receipts.keep(Receipt(ask.id, ask.prompt, text, state.revision, state.fingerprint))
        ask.hearer.ended(Answered(state, len(encoded.ids), tuple(answers), in_weights))


def _refuse(job: Ask | _Work, error: Exception) -> None:
    if isinstance(job, _Work):
        job.future.set_exception(error)
    else:
        job.hearer.failed(error)
