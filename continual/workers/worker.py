"""A worker: a process with the base model at a state, which works one item after another.

It loads the base from its directory when the first item asks for a model, comes to a state by the
store's journal, which it only reads, and by the patches that it is sent, and says by the state's
fingerprint that it is there. It writes to a store's cache at most. Leaves the order of items, and
its own death, to ``crew``.
"""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from continual.base import BaseSource, WrongBaseModel
from continual.errors import ModelError
from continual.model import EditedModel
from continual.model.states import JournalPlace
from continual.patches import unpack
from continual.snapshots import StateKeeper
from continual.workers.travel import NotPortable, Residents, packed, packed_error, unpacked
from store.errors import IntegrityError


@dataclass(frozen=True)
class Setup:
    """The base model of a map, and its task."""

    source: BaseSource
    fingerprint: str
    task: bytes


@dataclass(frozen=True)
class Directions:
    """The way to a state: a place in a journal, or the bare base, and patches behind it."""

    place: JournalPlace | None
    steps: tuple[bytes | None, ...]  # of a patch's tensors and meta; None: a step without one
    fingerprint: str


@dataclass(frozen=True)
class Assignment:
    """An item to be worked. A worker keeps setup, state and function for the next one."""

    number: int
    item: bytes
    function: bytes | None  # None: the last one
    setup: Setup | None  # None: the last one, or no model at all
    directions: Directions | None  # None: the last state
    is_bare: bool  # the model runs without its patches
    threads: int  # of the worker: sums have other bits with another number of threads
    precision: str  # of products in float32; see torch.set_float32_matmul_precision


class Worker:
    """Works assignments. Its results depend on them alone."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._residents = Residents()
        self._source: tuple[BaseSource, str] | None = None  # of the base, with its fingerprint
        self._function: Callable[[Any], Any] | None = None

    def work(self, message: bytes) -> bytes:
        """Work one assignment; return its number and result, or the error that it ended with."""
        assignment: Assignment = pickle.loads(message)
        try:
            result = self._result(assignment)
            return pickle.dumps((assignment.number, True, packed(result, self._residents)))
        except Exception as error:
            return pickle.dumps((assignment.number, False, packed_error(_told(error))))

    def close(self) -> None:
        """Take the patches off."""
        self._stack.close()

    def _result(self, assignment: Assignment) -> Any:
        if torch.get_num_threads() != assignment.threads:
            torch.set_num_threads(assignment.threads)
        torch.set_float32_matmul_precision(assignment.precision)
        if assignment.setup is not None:
            self._set_up(assignment.setup)
        if assignment.directions is not None:
            self._go(assignment.directions)
        if assignment.function is not None:
            self._function = unpacked(assignment.function, self._residents)
        assert self._function is not None
        item = unpacked(assignment.item, self._residents)
        with ExitStack() as stack:
            if assignment.is_bare:
                stack.enter_context(self._edited.bare())
            return self._function(item)

    @property
    def _edited(self) -> EditedModel:
        assert self._residents.edited is not None
        return self._residents.edited

    def _set_up(self, setup: Setup) -> None:
        """Load a base with its task. Raises WrongBaseModel, ModelError."""
        if self._source != (setup.source, setup.fingerprint):
            self._load(setup)
        self._residents.close()
        self._residents = Residents.of(self._edited)
        self._residents.task = unpacked(setup.task, self._residents)

    def _load(self, setup: Setup) -> None:
        self._stack.close()
        self._source, base = None, setup.source.load()
        if base.fingerprint != setup.fingerprint:
            raise WrongBaseModel(
                f"A worker finds another base model in {setup.source.name} (fingerprint "
                f"{base.fingerprint[:12]}, not {setup.fingerprint[:12]}): the same files have to "
                "be there on every machine."
            )
        self._residents = Residents.of(self._stack.enter_context(EditedModel(base)))
        self._source = setup.source, setup.fingerprint

    def _go(self, way: Directions) -> None:
        """Come to a state. Raises IntegrityError if it is not the one that was meant."""
        edited, place = self._edited, way.place
        if not _went_back(edited, way.fingerprint):
            start = edited.base.fingerprint if place is None else place.fingerprint
            if not _went_back(edited, start):
                self._rebuild(place)
            for step in way.steps:
                edited.put(() if step is None else unpack(*unpacked(step, self._residents)))
        if not way.steps:
            edited.settle()
        if edited.fingerprint != way.fingerprint:
            raise IntegrityError(
                "a worker's model",
                f"is at {edited.fingerprint[:12]}, not at {way.fingerprint[:12]}: its machine may "
                "have another processor or library",
            )

    def _rebuild(self, place: JournalPlace | None) -> None:
        """Build the state of a journal's revision, or take everything off."""
        if place is None:
            self._edited.take_off(0)
            return
        store = self._residents.store(place.store)
        StateKeeper(store, self._edited).stand(store.revision(place.revision))


def _went_back(edited: EditedModel, fingerprint: str) -> bool:
    """Take the patches off that came behind a state; return False if the model did not pass it, or
    has settled on some of them."""
    depth = edited.depth_of(fingerprint)
    if depth is None:
        return False
    try:
        edited.take_off(depth)
    except ModelError:
        return False
    return True


def _told(error: Exception) -> Exception:
    """Return the error, or one for people if a result cannot travel."""
    if isinstance(error, NotPortable):
        return TypeError(f"a worker's result cannot travel: {error}")
    return error


def serve(descriptor: int) -> None:
    """Work the assignments that come by a socket, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the crew's process decides
    disable_progress_bar()  # the terminal is that of the crew's process
    worker, connection = Worker(), Connection(descriptor)
    try:
        while True:
            connection.send_bytes(worker.work(connection.recv_bytes()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        worker.close()
