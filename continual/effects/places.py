"""Places of gates in a model: where a gate reads its query, and where its values land.

A gate reads the query of a block's FFN (`FFN`), that query beside a mean of an inner block's
queries (`CONTEXT` or `TOPIC`, see `effects.context`), the input of the FFN's output matrix
(`INNER`), the block's output (`HIDDEN`), or the mean of the outputs over the tokens so far
(`POOLED`). Its values land on an FFN's output or on a block's output, in the same block or in a
later one: a *remote gate* has its key early and its value late. Outputs of blocks are read before
values land on them, so that no gate of a block sees the values of another one there.

Knows blocks by their numbers; leaves the modules to `EditedModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from continual.errors import EditError

FFN, HIDDEN, POOLED, CONTEXT, INNER = "ffn", "hidden", "pooled", "context", "inner"
TOPIC = "topic"
KEYS = (FFN, HIDDEN, POOLED)
"""The states that any gate can read by itself. `CONTEXT` and `TOPIC` need the block of their mean,
too; `INNER` is of another width than values, so that neurons cannot read it."""
WITH_CONTEXT = (CONTEXT, TOPIC)
"""The queries beside a mean, of all of the latest tokens or of those that belong to no template."""
QUERIES = (FFN, *WITH_CONTEXT)
"""The states that are read as a block's FFN begins."""
NO_BLOCK = -1
VALUES = (FFN, HIDDEN)
"""The outputs that values can land on."""
INPUTS = (*QUERIES, INNER)
"""The states that go into a module of the FFN; the others come out of the block."""
_READ = {
    FFN: 0,
    CONTEXT: 0,
    TOPIC: 0,
    INNER: 1,
    HIDDEN: 3,
    POOLED: 3,
}  # in the order of a forward pass
_LANDED = {FFN: 2, HIDDEN: 4}


@dataclass(frozen=True, order=True)
class GatePlace:
    """A place of gates. Places are ordered: values land on one output in the order of places."""

    block: int  # whose state is read
    key: str  # one of KEYS, WITH_CONTEXT, or INNER
    value_block: int
    value: str  # one of VALUES: the output of that block's FFN, or of the block itself
    context: int = NO_BLOCK  # the block whose FFN queries a key with context takes the mean of

    @classmethod
    def at(
        cls,
        block: int,
        key: str = FFN,
        value_block: int | None = None,
        value: str | None = None,
        context: int = NO_BLOCK,
    ) -> Self:
        """Make a place of these parts. A value lands in the block of its key unless another one is
        named; on the FFN's output, or on the block's if the FFN has run before the key is read.

        Raises EditError for unknown names, and if values would land before the key is read.
        """
        lands_in = block if value_block is None else value_block
        is_late = lands_in > block or key in INPUTS
        place = cls(
            block, key, lands_in, (FFN if is_late else HIDDEN) if value is None else value, context
        )
        place._check()
        return place

    def _check(self) -> None:
        if self.key not in (*KEYS, *WITH_CONTEXT, INNER) or self.value not in VALUES:
            raise EditError(
                f"A gate reads {', '.join((*KEYS, *WITH_CONTEXT, INNER))}, and its values land on "
                f"{' or '.join(VALUES)}; there is no gate from {self.key!r} to {self.value!r}."
            )
        if self.has_context != (0 <= self.context < self.block):
            raise EditError(
                f"A gate at block {self.block} reads {self.key!r} with the context of block "
                f"{self.context}: a context is of an earlier block, and only of key "
                f"{' or '.join(map(repr, WITH_CONTEXT))}."
            )
        if (self.block, _READ[self.key]) > (self.value_block, _LANDED[self.value]):
            raise EditError(
                f"The gate's values would land on {self.landing} before its key is read, on "
                f"{self.reading}: name a later block, or the block's output ({HIDDEN})."
            )

    @property
    def has_context(self) -> bool:
        """True if the key reads a query with its context."""
        return self.key in WITH_CONTEXT

    @property
    def is_local(self) -> bool:
        """True if key and value are at one FFN, as T-Patcher's neurons are."""
        return self == GatePlace(self.block, FFN, self.block, FFN)

    @property
    def is_remote(self) -> bool:
        """True if the values land in a later block than the key's."""
        return self.value_block > self.block

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read a place from its parts by name. Raises KeyError for one that is missing, and
        EditError for parts that fit no place."""
        return cls.at(
            int(record["block"]),
            record["key"],
            int(record["value_block"]),
            record["value"],
            int(record.get("context", NO_BLOCK)),
        )

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
        states = {HIDDEN: "the output", POOLED: "the pooled output", INNER: "the FFN key"}
        state = states.get(self.key, "the FFN query")
        beside = f" beside the {self.key} of block {self.context}" if self.has_context else ""
        return f"{state} of block {self.block}{beside}"

    @property
    def landing(self) -> str:
        """The output that values land on, in words."""
        output = {FFN: "the FFN output", HIDDEN: "the output"}
        return f"{output.get(self.value, self.value)} of block {self.value_block}"

    def __str__(self) -> str:
        return f"{self.reading} → {self.landing}"

    def to_json(self) -> dict[str, Any]:
        """Return the place's parts by name."""
        record = {
            "block": self.block,
            "key": self.key,
            "value_block": self.value_block,
            "value": self.value,
        }
        return {**record, "context": self.context} if self.has_context else record
