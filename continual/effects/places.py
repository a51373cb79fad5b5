"""Places of gates in a model: where a gate reads its query, and where its values land.

A gate reads the query of a block's FFN (`FFN`), the block's output (`HIDDEN`), or the mean of the
outputs over the tokens so far (`POOLED`). Its values land on an FFN's output or on a block's
output, in the same block or in a later one: a *remote gate* has its key early and its value late.
Outputs of blocks are read before values land on them, so that no gate of a block sees the values
of another one there.

Knows blocks by their numbers; leaves the modules to `EditedModel`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from continual.errors import EditError

FFN, HIDDEN, POOLED = "ffn", "hidden", "pooled"
KEYS = (FFN, HIDDEN, POOLED)
"""The states that a gate can read."""
VALUES = (FFN, HIDDEN)
"""The outputs that values can land on."""
_READ = {FFN: 0, HIDDEN: 2, POOLED: 2}  # in the order of a block's forward pass
_LANDED = {FFN: 1, HIDDEN: 3}


@dataclass(frozen=True, order=True)
class GatePlace:
    """A place of gates. Places are ordered: values land on one output in the order of places."""

    block: int  # whose state is read
    key: str  # one of KEYS
    value_block: int
    value: str  # one of VALUES: the output of that block's FFN, or of the block itself

    @classmethod
    def at(
        cls, block: int, key: str = FFN, value_block: int | None = None, value: str | None = None
    ) -> Self:
        """Make a place of these parts. A value lands in the block of its key unless another one is
        named; on the FFN's output, or on the block's if the FFN has run before the key is read.

        Raises EditError for unknown names, and if values would land before the key is read.
        """
        lands_in = block if value_block is None else value_block
        is_late = lands_in > block or key == FFN
        place = cls(block, key, lands_in, (FFN if is_late else HIDDEN) if value is None else value)
        place._check()
        return place

    def _check(self) -> None:
        if self.key not in KEYS or self.value not in VALUES:
            raise EditError(
                f"A gate reads {', '.join(KEYS)}, and its values land on {' or '.join(VALUES)}; "
                f"there is no gate from {self.key!r} to {self.value!r}."
            )
        if (self.block, _READ[self.key]) > (self.value_block, _LANDED[self.value]):
            raise EditError(
                f"The gate's values would land on {self.landing} before its key is read, on "
                f"{self.reading}: name a later block, or the block's output ({HIDDEN})."
            )

    @property
    def is_local(self) -> bool:
        """True if key and value are at one FFN, as T-Patcher's neurons are."""
        return self == GatePlace(self.block, FFN, self.block, FFN)

    @property
    def is_remote(self) -> bool:
        """True if the values land in a later block than the key's."""
        return self.value_block > self.block

    def is_behind(self, site: GatePlace) -> bool:
        """Tell whether the values land behind the residual sum at the site, the last place of a
        model whose values are added there; or on the same output, from another key."""
        return self != site and (self.value_block, self.value) == (site.value_block, HIDDEN)

    def moves_rows(self, site: GatePlace) -> bool:
        """Tell whether an open gate changes rows at the site: a query, or a residual sum without
        the site's own neurons."""
        return not self.is_behind(site) and self != site

    @property
    def reading(self) -> str:
        """The state that the gate reads, in words."""
        state = {FFN: "the FFN query", HIDDEN: "the output", POOLED: "the pooled output"}
        return f"{state.get(self.key, self.key)} of block {self.block}"

    @property
    def landing(self) -> str:
        """The output that values land on, in words."""
        output = {FFN: "the FFN output", HIDDEN: "the output"}
        return f"{output.get(self.value, self.value)} of block {self.value_block}"

    def __str__(self) -> str:
        return f"{self.reading} → {self.landing}"

    def to_json(self) -> dict[str, Any]:
        """Return the place's parts by name."""
        return {
            "block": self.block,
            "key": self.key,
            "value_block": self.value_block,
            "value": self.value,
        }
