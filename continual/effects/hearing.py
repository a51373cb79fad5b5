"""The rows of gated effects that open while a model runs, pass by pass, for whoever explains an
answer.

An effect that can tell them has an `Ear`. Nothing is computed while nobody listens. Knows rows and
tokens; leaves the requests behind the rows to readers of patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from continual.effects.places import GatePlace


@dataclass(frozen=True)
class OpenRows:
    """The rows of an effect that open in a pass over one sequence, an entry for each opening."""

    length: int  # tokens of the pass
    tokens: Tensor  # [k] places in the pass
    rows: Tensor  # [k] rows of the effect, numbered in the order in which patches brought them
    strengths: Tensor  # [k] how far each is open; every effect has a measure of its own


class Ear:
    """Collects open rows while somebody listens."""

    def __init__(self) -> None:
        self._passes: list[OpenRows] | None = None

    def hear(self, find: Callable[[], OpenRows]) -> None:
        """Take in the open rows of a pass; do nothing while nobody listens."""
        if self._passes is not None:
            self._passes.append(find())

    @contextmanager
    def listening(self) -> Iterator[list[OpenRows]]:
        """Collect within `with` the open rows of each pass; the passes are of one sequence."""
        passes: list[OpenRows] = []
        self._passes = passes
        try:
            yield passes
        finally:
            self._passes = None


@runtime_checkable
class HeardEffect(Protocol):
    """A gated effect that can tell which of its rows open."""

    def heard(self) -> AbstractContextManager[list[OpenRows]]:
        """Collect within `with` the rows that open at each pass; the passes are of one sequence."""


@dataclass(frozen=True)
class HeardGates:
    """The rows of one effect that opened, pass by pass."""

    kinds: frozenset[str]  # of its pieces, as `BESIDE` names them
    place: GatePlace
    reaches_on: bool  # opened at a token it may change later tokens, too
    passes: Sequence[OpenRows]
