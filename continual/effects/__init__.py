"""Effects: what the patches of one family do to a running model. One file per family.

`gated` has gates at a place, `parameters` sums added to parameters, `records` texts beside the
model. A model is run with a list of effects; it knows none of them by name. A `Reach` says what an
effect may have changed, so that whoever keeps rows or outcomes knows what to measure again.

Another effect with gates is a class with the methods of `GatedEffect`, and a patch that puts its
pieces on; model and ledger need no line for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from continual.effects.places import GatePlace


@dataclass(frozen=True)
class Reach:
    """What may have changed, and so what has to be measured again.

    Gates change the inputs that open one of them, from the block on where their values land. Edited
    parameters change every input, from the first block that depends on them on. Records change the
    inputs that are about one of them.
    """

    gates: frozenset[GatePlace] = frozenset()  # places that have gates
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
        return min(self.blocks | self.gate_blocks(last), default=None)

    def gate_blocks(self, last: int) -> frozenset[int]:
        """The blocks where gates read their queries that may move rows at the FFN of block
        `last`."""
        return frozenset(place.block for place in self.gates if place.moves_rows(last))

    def is_rows_alone(self, last: int) -> bool:
        """Tell whether all that changes is the sum at the FFN of block `last`: its own neurons."""
        return not self.blocks and not self.records and self.gates <= {GatePlace.at(last)}

    def moves(self, last: int) -> bool:
        """Tell whether rows at the FFN of block `last` may be others."""
        return self.lowest(last) is not None


NOTHING = Reach()
MOVED = ("weight_blocks", "gate_blocks")
"""Where a revision's body says at which blocks it moved rows."""


def moved_blocks(reach: Reach, last: int) -> dict[str, list[int]]:
    """What a revision's body says of a reach that moves rows at the FFN of block `last`; nothing
    for one that does not."""
    found = zip(MOVED, (reach.blocks, reach.gate_blocks(last)), strict=True)
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

    @property
    def is_in_parameters(self) -> bool:
        """Whether all of it stands in the model's parameters, so that these are enough to save."""

    def silenced(self) -> AbstractContextManager[None]:
        """The model runs without the effect while this lasts, within `attached`."""


class KeptQueries(Protocol):
    """The queries that some inputs showed at one place, a row for each token, kept in few bytes.

    The rows themselves are gone: what is left bounds products with them.
    """

    def __len__(self) -> int:
        """How many queries: m."""

    @property
    def squares(self) -> Tensor:
        """[m] float32: ‖x‖² of each query x, up to float rounding."""

    def bounds(self, keys: Tensor) -> Tensor:
        """[n, m] float32: numbers that are no less than x·k, float rounding included, for each
        query x and keys k [n, d]. With `squares` they bound distances, too: ‖x - k‖² is at least
        ‖x‖² - 2·bound + ‖k‖²."""


@runtime_checkable
class GatedEffect(Effect, Protocol):
    """An effect that leaves an input exactly as it was unless one of its gates opens on a token.

    Whoever follows outcomes keeps the queries of all inputs at `place`, as they were when the
    effect had `first` pieces, and asks `may_differ` before it runs anything again. Only inputs with
    a query that may differ are run again, through the model itself; so a query too many costs time,
    and one too few leaves a wrong outcome behind.

    For neurons with q·k + b > 0 the answer depends on the new pieces alone. In a codebook a new
    entry can also narrow or take over what an earlier one answered: then the queries near that
    earlier entry differ as well, although it has not opened anew.
    """

    @property
    def place(self) -> GatePlace:
        """Where its gates read their queries, and where their values land."""

    def may_differ(self, queries: KeptQueries, first: int) -> Tensor:
        """[m] bool: for which of the queries the effect as it is now may add another value, or none
        instead of one, than it added with its first `first` pieces alone. False has to be certain;
        True may be wrong. The answer is on the CPU, as the queries are."""
