"""Executors: work maps over passes. Whoever opens a store hands one in.

Knows functions and items alone. A mapped function depends on its item and its bound arguments, the
model as it stands included, and changes neither. So an executor may work the items in any order
and anywhere: it yields results in the items' order, and callers add them up in that order, with the
same bits whatever the workers. Callers take all results within the `with` blocks of the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Input = TypeVar("Input")
Result = TypeVar("Result")


class Executor(Protocol):
    """Applies functions to the items of a map."""

    def map(self, function: Callable[[Input], Result], items: Sequence[Input]) -> Iterator[Result]:
        """Yield the function's results in the order of the items."""
