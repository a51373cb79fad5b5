"""Effects: what the patches of one family do to a running model. One file per family.

`gated` has neurons at a block, `parameters` sums added to parameters, `records` texts beside the
model. A model is run with a list of effects; it knows none of them by name. A `Reach` says what an
effect may have changed, so that whoever keeps rows or outcomes knows what to measure again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Reach:
    """What may have changed, and so what has to be measured again.

    Neurons change the inputs that open one of them, from their block on. Edited parameters change
    every input, from the first block that depends on them on. Records change the inputs that are
    about one of them.
    """

    gates: frozenset[int] = frozenset()  # blocks that have neurons
    blocks: frozenset[int] = frozenset()  # the first block behind each edited parameter
    records: bool = False

    def __or__(self, other: Reach) -> Reach:
        """Join two reaches."""
        return Reach(
            self.gates | other.gates, self.blocks | other.blocks, self.records or other.records
        )

    def lowest(self, last: int) -> int | None:
        """The lowest block from which the rows at the FFN of block `last` may be others: a query
        and a residual sum without the neurons of that block; None where they are as they were."""
        moving = self.blocks | {block for block in self.gates if block < last}
        return min(moving, default=None)

    def moves(self, last: int) -> bool:
        """Tell whether rows at the FFN of block `last` may be others."""
        return self.lowest(last) is not None


NOTHING = Reach()
MOVED = ("weight_blocks", "gate_blocks")
"""Where a revision's body says at which blocks it moved rows."""


def moved_blocks(reach: Reach, last: int) -> dict[str, list[int]]:
    """What a revision's body says of a reach that moves rows at the FFN of block `last`; nothing
    for one that does not."""
    inner = {block for block in reach.gates if block < last}
    found = zip(MOVED, (reach.blocks, inner), strict=True)
    return {name: sorted(blocks) for name, blocks in found if blocks}


def has_moved(body: Mapping[str, object]) -> bool:
    """Tell whether a revision moved rows, by its body."""
    return any(body.get(name) for name in MOVED)


class Effect(Protocol):
    """What the patches of one family do to a model, at one place."""

    @property
    def size(self) -> int:
        """How many pieces it has: neurons, or patches."""

    def truncate(self, size: int) -> None:
        """Be as with the first `size` pieces, bit for bit. Raises ModelError where there is no way
        back to there."""

    def require_way_back(self, size: int) -> None:
        """Raises ModelError where `truncate` would."""

    def settle(self) -> None:
        """Let go of what only a way back to a size between none and this one needs."""

    def reach(self, first: int = 0) -> Reach:
        """What its pieces from `first` on may have changed."""

    def attached(self) -> AbstractContextManager[None]:
        """The model runs with the effect while this lasts."""

    def silenced(self) -> AbstractContextManager[None]:
        """The model runs without the effect while this lasts, within `attached`."""
