"""Effects: the ways in which patches of one family change a running model. One file per family.

`gated` has gates at a place, `parameters` sums added to parameters, `records` texts beside the
model. A model runs with a list of effects, and knows none of them by name. A `Reach` names the
inputs that an effect may have changed, so that holders of rows or outcomes measure these again.

A new effect with gates needs a class with the methods of `GatedEffect`, and a patch that puts its
pieces on; model and ledger need no line for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from continual.effects.places import GatePlace

NEURONS, SUBJECTS, CONTEXTS, GATES = "neurons", "subjects", "contexts", "gates"
CODEBOOK, LOOKUP, MEMORY, FACTORS = "codebook", "lookup", "memory", "factors"
BESIDE: Mapping[str, str] = {
    NEURONS: "neurons beside a block's FFN",
    SUBJECTS: "neurons that ask for a subject in the text",
    CONTEXTS: "neurons whose queries have a context",
    GATES: "neurons at another place than a block's FFN",
    CODEBOOK: "rows of a codebook",
    LOOKUP: "rows of a look-up",
    MEMORY: "records in memory",
    FACTORS: "updates beside a matrix that nothing is written into",
}
"""The kinds of pieces that stand beside a model's parameters, each in words."""


@dataclass(frozen=True)
class Reach:
    """The inputs that may have changed, and so have to be measured again, and from which block.

    Gates change the inputs that open one of them, from the block where their values land. Edited
    parameters change every input, from the first block that depends on them. Records change the
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

    def lowest(self, site: GatePlace) -> int | None:
        """Return the lowest block whose changes may move the rows at a site: a query, or a residual
        sum without the neurons there. None if no row moves."""
        return min(self.blocks | self.gate_blocks(site), default=None)

    def gate_blocks(self, site: GatePlace) -> frozenset[int]:
        """Return the blocks where gates read that may move rows at a site."""
        return frozenset(place.block for place in self.gates if place.moves_rows(site))

    def is_rows_alone(self, site: GatePlace) -> bool:
        """Tell whether only the sum at a site changes, by its own neurons."""
        return not self.blocks and not self.records and self.gates <= {site}

    def moves(self, site: GatePlace) -> bool:
        """Tell whether rows at a site may have changed."""
        return self.lowest(site) is not None


NOTHING = Reach()
MOVED = ("weight_blocks", "gate_blocks")
"""The keys of a revision's body for the blocks at which it moved rows."""


def moved_blocks(reach: Reach, site: GatePlace) -> dict[str, list[int]]:
    """Return the entries of a revision's body for a reach that moves rows at a site; empty if it
    moves none."""
    pairs = zip(MOVED, (reach.blocks, reach.gate_blocks(site)), strict=True)
    return {name: sorted(blocks) for name, blocks in pairs if blocks}


def has_moved(body: Mapping[str, object]) -> bool:
    """Tell from a revision's body whether it moved rows."""
    return any(body.get(name) for name in MOVED)


class Effect(Protocol):
    """The change of a model by the patches of one family, at one place."""

    @property
    def size(self) -> int:
        """The number of its pieces: neurons, or patches."""

    def truncate(self, size: int) -> None:
        """Cut the effect back to its first `size` pieces, bit for bit. Raises ModelError if there
        is no way back to them."""

    def require_way_back(self, size: int) -> None:
        """Raise ModelError if `truncate` would."""

    def settle(self) -> None:
        """Let go of data that only a way back to a size between zero and this one needs."""

    def reach(self, first: int = 0) -> Reach:
        """Return the reach of the pieces from `first` on."""

    def attached(self) -> AbstractContextManager[None]:
        """Run the model with the effect within `with`."""

    @property
    def beside(self) -> Mapping[str, int]:
        """The number of its pieces that stand beside the model's parameters, by their kind in
        `BESIDE`; empty if saving the parameters is enough."""

    def silenced(self) -> AbstractContextManager[None]:
        """Run the model without the effect within `with`, inside `attached`."""


class KeptQueries(Protocol):
    """The queries of some inputs at one place, a row for each token, kept in few bytes.

    The rows themselves are gone: their codes bound products with them.
    """

    def __len__(self) -> int:
        """Return the number of queries, m."""

    @property
    def squares(self) -> Tensor:
        """[m] float32: ‖x‖² of each query x, up to float rounding."""

    def bounds(self, keys: Tensor) -> Tensor:
        """Return upper bounds [n, m] float32 of x·k, float rounding included, for each query x and
        keys k [n, d]. With `squares` they bound distances, too: ‖x - k‖² is at least
        ‖x‖² - 2·bound + ‖k‖²."""


@runtime_checkable
class GatedEffect(Effect, Protocol):
    """An effect that leaves an input exactly as it was unless one of its gates opens on a token.

    The ledger keeps the queries of all inputs at `place`, read when the effect had `first` pieces,
    and calls `may_differ` before it runs any input again. Only inputs with a query that may differ
    are run again, through the model itself; so a query too many costs time, and one too few leaves
    a wrong outcome behind.

    For neurons with q·k + b > 0 the answer depends on the new pieces alone. In a codebook a new
    entry can also narrow an earlier one or take over some of its queries: then the queries near
    that earlier entry differ as well, although it has not opened anew.
    """

    @property
    def place(self) -> GatePlace:
        """The place where its gates read their queries, and where their values land."""

    def may_differ(self, queries: KeptQueries, first: int) -> Tensor:
        """Tell for each query, as [m] bool, whether the effect as it is now may add another value
        than with its first `first` pieces alone, or none instead of one. False has to be certain;
        True may be wrong. The answer is on the CPU, as the queries are."""
