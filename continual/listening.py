"""Listeners: hear notes and progress while a command works, beside its result.

Knows texts and numbers; leaves their display to whoever makes the listener.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _unheard(_text: str) -> None:
    """Ignore a note."""


def _unseen(_what: str, _done: int, _total: int) -> None:
    """Ignore progress."""


@dataclass
class Listener:
    """Hears of the progress of long work, and of work that nobody asked for."""

    note: Callable[[str], None] = _unheard
    progress: Callable[[str, int, int], None] = _unseen  # name of the work, done, total
