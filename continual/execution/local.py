"""Works maps in this process, one item after another, each when its result is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from continual.execution import Input, Result


class LocalExecutor:
    """Computes a result when it is taken, and holds one at a time."""

    def map(self, function: Callable[[Input], Result], items: Sequence[Input]) -> Iterator[Result]:
        """Yield the function's results in the order of the items."""
        return map(function, items)


LOCAL = LocalExecutor()
