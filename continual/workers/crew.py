"""A crew: an executor that hands the items of a map to workers, and keeps their order.

Which worker works an item, and how many there are, changes no bit: an item is one pass or one
chunk, as one process would work it, on a model at the same state, with as many threads; and results
come in the items' order. A map is worked in this process if it has one item, if its function or an
item cannot travel, or if something beside patches changes the model now.

An item whose worker dies is done again by another worker. One whose workers die TRIES times ends
the map with WorkerLost; the history is then as after the last step, and goes on from there. Leaves
starting workers and reaching them to `Seats`.
"""

from __future__ import annotations

import pickle
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import takewhile
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from continual.base import BaseSource
from continual.errors import CeditError
from continual.execution import Input, Result
from continual.model import EditedModel
from continual.model.states import StateRecipe
from continual.patches import pack
from continual.tasks import Task
from continual.workers.travel import NotPortable, Residents, packed, unpacked, unpacked_error
from continual.workers.worker import Assignment, Directions, Setup

TRIES = 3  # workers that may die of one item
AHEAD = 2  # results for each worker that wait for an earlier one


class WorkerLost(CeditError):
    """An item of a map that ends every worker that takes it, or a cluster that is gone."""


class Seats(Protocol):
    """The places of workers, numbered from 0: each has a worker, or gets one when it is needed."""

    count: int
    remedy: str  # for a person, when workers die again and again

    def post(self, seat: int, message: bytes) -> bool:
        """Send a message to a worker that has none; return False if it is gone."""

    def wait(self, seats: Collection[int]) -> dict[int, bytes | None]:
        """Wait for replies of these workers; return those that came, and None for a worker that is
        gone."""

    def renew(self, seat: int) -> str:
        """Clear the place of a worker that is gone, for another one; return the cause of its
        end."""

    def close(self) -> None:
        """End all workers."""


@dataclass
class _Map:
    """A map under way."""

    name: str
    function: bytes
    items: list[bytes]
    residents: Residents
    state: _State | None  # None: it needs no model
    pending: deque[int]
    replies: dict[int, tuple[bool, bytes]] = field(default_factory=dict)
    deaths: Counter[int] = field(default_factory=Counter)
    is_over: bool = False

    def next_for(self, seat: int, count: int, end: int) -> int | None:
        """Take the next item below `end` for a worker: if there is one, an item that always goes to
        it, as it may remember something of that item."""
        numbers = list(takewhile(lambda number: number < end, self.pending))
        if not numbers:
            return None
        number = next((n for n in numbers if n % count == seat), numbers[0])
        self.pending.remove(number)
        return number


@dataclass(frozen=True)
class _State:
    """The state of the model that a map is worked on."""

    source: BaseSource
    base: str  # the base's fingerprint
    residents: Residents
    recipe: StateRecipe

    @cached_property
    def setup(self) -> Setup:
        """The base, and its task as bytes."""
        assert self.residents.edited is not None
        task = packed(self.residents.task, Residents.of(self.residents.edited))
        return Setup(self.source, self.base, task)

    @cached_property
    def directions(self) -> Directions:
        """The way to the state, with its patches as bytes."""
        recipe = self.recipe
        steps = tuple(packed(pack(parts), Residents()) if parts else None for parts in recipe.steps)
        return Directions(recipe.place, steps, recipe.fingerprint)

    @classmethod
    def of(cls, residents: Residents, edited: EditedModel) -> _State:
        """Return the state of the model as it stands. Raises NotPortable if no other process can
        come to it."""
        recipe, source = edited.recipe, edited.base.source
        if recipe is None or source is None:
            raise NotPortable("a model that is changed by something beside patches")
        return cls(source, edited.base.fingerprint, residents, recipe)


@dataclass
class _Known:
    """The knowledge of one worker: what it was sent last, and need not be sent again."""

    base: tuple[BaseSource, str] | None = None  # with its fingerprint
    task: Task | None = None
    fingerprint: str = ""  # of the state
    function: bytes | None = None

    def has(self, state: _State) -> bool:
        """Tell whether the worker has the base of a state, and its task if there is one."""
        task = state.residents.task
        is_base = self.base == (state.source, state.base)
        return is_base and (task is None or task is self.task)

    def assignment(self, job: _Map, number: int) -> Assignment:
        """Return an item of a map for this worker, with everything that it does not know yet, and
        knows from here on."""
        state, setup, directions = job.state, None, None
        if state is not None and not self.has(state):
            setup = state.setup
            self.base, self.task = (state.source, state.base), state.residents.task
            self.fingerprint, self.function = "", None
        is_bare = state is not None and state.recipe.is_bare
        if state is not None and not is_bare and state.recipe.fingerprint != self.fingerprint:
            directions, self.fingerprint = state.directions, state.recipe.fingerprint
        function = None if job.function == self.function else job.function
        self.function = job.function
        return Assignment(
            number,
            job.items[number],
            function,
            setup,
            directions,
            is_bare,
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
        )


class Crew:
    """An executor with workers beside this process. A context manager: they end with it."""

    def __init__(self, seats: Seats) -> None:
        self.seats = seats
        self._known = {seat: _Known() for seat in range(seats.count)}
        self._busy: dict[int, tuple[_Map, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers; a later map starts others."""
        self.seats.close()
        self._known = {seat: _Known() for seat in self._known}
        self._busy.clear()

    def map(self, function: Callable[[Input], Result], items: Sequence[Input]) -> Iterator[Result]:
        """Yield the function's results in the order of the items. Raises the error of the first
        item that has one, and WorkerLost."""
        job = _prepared(function, items) if len(items) > 1 else None
        return map(function, items) if job is None else self._worked(job)

    def _worked(self, job: _Map) -> Iterator[Any]:
        try:
            for number in range(len(job.items)):
                while number not in job.replies:
                    self._hand_out(job, number + AHEAD * self.seats.count)
                    self._take_in()
                is_done, data = job.replies.pop(number)
                if not is_done:
                    raise unpacked_error(data)
                yield unpacked(data, job.residents)
        finally:
            job.is_over = True

    def _hand_out(self, job: _Map, end: int) -> None:
        """Give an item to each worker that has none."""
        for seat in range(self.seats.count):
            if seat in self._busy:
                continue
            number = job.next_for(seat, self.seats.count, end)
            if number is None:
                return
            message = pickle.dumps(self._known[seat].assignment(job, number))
            if self.seats.post(seat, message):
                self._busy[seat] = job, number
            else:
                self._lost(seat, job, number)

    def _take_in(self) -> None:
        """Wait for some replies, and keep each for its map."""
        if not self._busy:
            return
        for seat, reply in self.seats.wait(list(self._busy)).items():
            job, number = self._busy.pop(seat)
            if reply is None:
                self._lost(seat, job, number)
                continue
            _, is_done, data = pickle.loads(reply)
            if not is_done:
                self._known[seat] = _Known()  # it may have stopped on its way to a state
            if not job.is_over:
                job.replies[number] = is_done, data

    def _lost(self, seat: int, job: _Map, number: int) -> None:
        """Have an item done again whose worker is gone. Raises WorkerLost at last."""
        cause = self.seats.renew(seat)
        self._known[seat] = _Known()
        job.deaths[number] += 1
        if job.is_over:
            return
        if job.deaths[number] >= TRIES:
            raise WorkerLost(
                f"{TRIES} workers in a row were lost at item {number + 1} of {len(job.items)} of "
                f"{job.name}; of the last one: {cause}. {self.seats.remedy} Nothing that was "
                "committed is lost: the same command goes on from there."
            )
        job.pending.appendleft(number)


def _prepared(function: Callable[[Any], Any], items: Sequence[Any]) -> _Map | None:
    """Return a map in bytes; None if it has to be worked in this process."""
    residents = Residents()
    with suppress(NotPortable):
        of_function = packed(function, residents)
        of_items = [packed(item, residents) for item in items]
        state = None if residents.edited is None else _State.of(residents, residents.edited)
        return _Map(
            _name(function), of_function, of_items, residents, state, deque(range(len(items)))
        )
    return None


def _name(function: Callable[[Any], Any]) -> str:
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__qualname__", type(function).__name__))
