"""Where maps over passes are worked: an `Executor` is handed in by whoever opens a store.

Knows functions and items alone. A mapped function depends on its item and on what is bound to it,
the model as it stands included, and leaves both as they are. So items may be worked in any order
and anywhere: results come in the items' order, and whoever adds them up does so in that order, with
the same bits whatever the workers. Results are taken within the `with` blocks of the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Works the items of a map."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """The function's results, in the order of the items."""
