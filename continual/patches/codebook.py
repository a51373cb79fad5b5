"""Codebook patches: rows of a codebook at the FFN of one block (GRACE, Hartvigsen et al. 2023).

A row has its key, a value that answers it, its own radius and its label, as its editor made them.
The rows before it decide whether it becomes an entry, or widens or narrows an earlier one; see
`effects.codebook`. So nothing of a request is left behind when its rows are taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor

from continual.effects import CODEBOOK
from continual.effects.codebook import AnswerTokens, Codebook
from continual.effects.gated import Mount
from continual.effects.places import GatePlace
from continual.errors import EditError
from continual.patches.placed_rows import PlacedRowsPatch


class Booked(Protocol):
    """The model that a codebook patch is put on."""

    def gated(self, name: str, place: GatePlace, make: Callable[[Mount], Codebook]) -> Codebook:
        """Return the codebook of this name at a place, made at the first call."""


@dataclass(frozen=True)
class CodebookPatch(PlacedRowsPatch):
    """n rows for the codebook at the FFN of one block; float32."""

    kind: ClassVar[str] = "codebook"
    name: ClassVar[str] = "codebook patch"
    beside_kind: ClassVar[str] = CODEBOOK
    words: ClassVar[tuple[str, ...]] = ("labels", "shares")

    block: int
    keys: Tensor  # [n, d]
    values: Tensor  # [n, d]
    radii: Tensor  # [n] ε₀ > 0
    blurs: Tensor  # [n] see `CodebookRows`
    labels: tuple[AnswerTokens, ...]  # [n] the tokens that each row is to lead to
    shares: tuple[bool, ...]  # [n] whether a near entry of the same label answers it, too
    owners: tuple[str, ...] = ()  # [n] the request that each row is for, where it is known

    @property
    def place(self) -> GatePlace:
        """The place of the codebook."""
        return GatePlace.at(self.block)

    @classmethod
    def book(cls, model: Booked, block: int) -> Codebook:
        """Return the codebook of a block on a model. Raises ModelError if it has no such block."""
        return model.gated(f"codebook at {block}", GatePlace.at(block), Codebook)

    def tensors(self) -> dict[str, Tensor]:
        """Return keys, values, radii and blurs."""
        rows = {"keys": self.keys, "values": self.values}
        return {**rows, "radii": self.radii, "blurs": self.blurs}

    def meta(self) -> dict[str, Any]:
        """Return the block, the labels, and a mark for each row that shares a value."""
        labels = [list(label) for label in self.labels]
        return {"block": self.block, "labels": labels, "shares": list(self.shares)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """See `Patch.from_tensors`."""
        try:
            labels = tuple(tuple(int(token) for token in label) for label in meta["labels"])
            shares = tuple(bool(flag) for flag in meta["shares"])
            rows = (tensors["keys"], tensors["values"], tensors["radii"], tensors["blurs"])
            return cls(int(meta["block"]), *rows, labels, shares)
        except KeyError as error:
            raise EditError(
                f"A codebook patch has no {error}: its file is not one of ours."
            ) from None

    def put_on(self, model: Booked) -> Sequence[Tensor]:
        """See `Patch.put_on`: the radii of all entries are among the returned tensors."""
        return self.book(model, self.block).extend(self)

    def check(self) -> None:
        """See `Patch.check`."""
        count = self.keys.shape[:1]
        fits = self.keys.ndim == 2 and self.values.shape == self.keys.shape
        shapes = (self.radii.shape, self.blurs.shape)
        self._require_fit(fits and shapes == (count, count))
        if len(self.labels) != len(self.keys) or len(self.shares) != len(self.keys):
            raise EditError(
                f"A codebook patch has {len(self.labels)} labels and {len(self.shares)} marks of "
                f"sharing for {len(self.keys)} rows: its file is not one of ours."
            )
        if bool((self.radii <= 0).any() or (self.blurs < 0).any()):
            raise EditError("A codebook patch has a radius that is not positive.")
