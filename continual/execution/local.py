"""Maps worked in this process, one item after another, each when its result is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from continual.execution import Item, Result


class LocalExecutor:
    """Holds one result at a time: what is not taken is not computed."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """The function's results, in the order of the items."""
        return map(function, items)


LOCAL = LocalExecutor()
