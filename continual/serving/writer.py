"""The one writer: applies approved corrections on the model's thread, in turn with the answers."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from continual.review.applying import apply_next, settle
from continual.review.queue import CorrectionQueue
from continual.review.states import APPROVED
from continual.serving.desk import Desk, DeskClosed
from continual.session import Session

PAUSE_S = 1.0  # after a fault of the store
_LOG = logging.getLogger("cedit.writer")


class Writer:
    """Applies what is approved, one correction after another; answers come between them."""

    def __init__(self, desk: Desk, queue: CorrectionQueue, *, prepares: bool = True) -> None:
        """With `prepares` it measures all probes at the start, and not at the first correction."""
        self._desk, self._queue, self._prepares = desk, queue, prepares
        self.is_ready = False
        """True when whatever was left half-done is finished, and all is measured."""
        self._turn = threading.Lock()
        self._is_at_work = False

    def start(self) -> None:
        """Finish whatever was left half-done, and apply what was approved before."""
        self._put(self._settle)
        self._put(self._prepare)

    def wake(self) -> None:
        """Apply what is approved. Called again while it is at work, it does nothing."""
        with self._turn:
            if self._is_at_work or not self._queue.items({APPROVED}):
                return
            self._is_at_work = True
        try:
            self._put(lambda session: apply_next(session, self._queue)).add_done_callback(
                self._applied
            )
        except DeskClosed:
            self._is_at_work = False
            raise

    def _settle(self, session: Session) -> None:
        """Finish what was left, and only then look for work: a correction whose step was not made
        is approved again by this."""
        try:
            settle(session, self._queue)
        finally:
            self.wake()

    def _prepare(self, session: Session) -> None:
        try:
            if self._prepares:
                _ = session.run_state  # made at its first use
        finally:
            self.is_ready = True

    def _applied(self, future: Future[Any]) -> None:
        """Go on with the next one: at once, or after a pause if this one met a fault."""
        with self._turn:
            self._is_at_work = False
        is_fault = future.cancelled() or future.exception() is not None
        with suppress(DeskClosed):
            if is_fault:
                self._wake_later()
            else:
                self.wake()

    def _wake_later(self) -> None:
        def wake() -> None:
            with suppress(DeskClosed):
                self.wake()

        timer = threading.Timer(PAUSE_S, wake)
        timer.daemon = True
        timer.start()

    def _put(self, work: Any) -> Future[Any]:
        future: Future[Any] = self._desk.do(work)
        future.add_done_callback(_told)
        return future


def _told(future: Future[Any]) -> None:
    """Log the error of work that nobody waits for."""
    error = None if future.cancelled() else future.exception()
    if error is not None and not isinstance(error, DeskClosed):
        _LOG.error("%s: %s", type(error).__name__, error, exc_info=error)
