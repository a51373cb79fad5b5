"""Who is told what goes on beside a command's result: notes, and how far something is.

Knows texts and numbers; what becomes of them is the listener's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _unheard(_text: str) -> None:
    """A note, unheard."""


def _unseen(_what: str, _done: int, _total: int) -> None:
    """Progress, unseen."""


@dataclass
class Listener:
    """Hears of what takes long, and of what is done without being asked for."""

    note: Callable[[str], None] = _unheard
    progress: Callable[[str, int, int], None] = _unseen  # what, done, of how many
