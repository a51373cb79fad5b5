"""Interrupts a run: the first signal asks it to end after its step, a second ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\ncedit: finishing the current step; once more to stop at once\n"


@contextmanager
def stopping(stop: threading.Event, *, reads_input: bool) -> Iterator[None]:
    """Set `stop` at the first SIGINT or SIGTERM, and raise KeyboardInterrupt at the second.

    If the run `reads_input`, the first signal also ends standard input, as the run may be waiting
    for it.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        os.write(2, _NOTICE)
        if reads_input:
            _end_input()

    handlers = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end_input() -> None:
    """End standard input; a read that waits for it then returns."""
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, sys.stdin.fileno())
    os.close(nowhere)
