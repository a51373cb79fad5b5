"""Codebook patches: rows of a codebook at the FFN of one block (GRACE, Hartvigsen et al. 2023).

A row has its key, a value that answers it, its own radius and its label, as its editor made them.
The rows before it decide whether it becomes an entry, or widens or narrows an earlier one; see
`effects.codebook`. So nothing of a request is left behind when its rows are taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from continual.anatomy import Anatomy
from continual.effects import CODEBOOK, Reach
from continual.effects.codebook import AnswerTokens, Codebook
from continual.effects.gated import Mount
from continual.effects.places import GatePlace
from continual.errors import EditError
from continual.patches.low_rank import Factors
from continual.patches.owners import by_kind, others_places, require_owners


class Booked(Protocol):
    """The model that a codebook patch is put on."""

    def gated(self, name: str, place: GatePlace, make: Callable[[Mount], Codebook]) -> Codebook:
        """Return the codebook of this name at a place, made at the first call."""


@dataclass(frozen=True)
class CodebookPatch:
    """n rows for the codebook at the FFN of one block; float32."""

    kind: ClassVar[str] = "codebook"

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

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.keys)

    @property
    def reach(self) -> Reach:
        """See `Patch.reach`."""
        return Reach(gates=frozenset({self.place} if len(self.keys) else ()))

    def beside(self) -> Mapping[str, tuple[str, ...]]:
        """See `Patch.beside`: all of its rows."""
        return by_kind([CODEBOOK] * len(self.keys), self.owners)

    def in_parameters(self, anatomy: Anatomy) -> Mapping[str, Factors | None]:
        """See `Patch.in_parameters`: none."""
        return {}

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

    def norm(self) -> float:
        """Return the largest norm of a value."""
        return float(self.values.norm(dim=1).max()) if len(self.values) else 0.0

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> list[CodebookPatch]:
        """See `Patch.joined`."""
        blocks = dict.fromkeys(part.block for part in parts)
        return [_concatenated([part for part in parts if part.block == b]) for b in blocks]

    def without(self, request_id: str) -> CodebookPatch | None:
        """See `Patch.without`."""
        places = others_places(self.owners, request_id)
        if len(places) == len(self.owners):
            return self
        return self._chosen(places) if places else None

    def _chosen(self, places: Sequence[int]) -> CodebookPatch:
        index = list(places)
        return replace(
            self,
            keys=self.keys[index],
            values=self.values[index],
            radii=self.radii[index],
            blurs=self.blurs[index],
            labels=tuple(self.labels[place] for place in places),
            shares=tuple(self.shares[place] for place in places),
            owners=tuple(self.owners[place] for place in places),
        )

    def owned_by(self, owners: tuple[str, ...]) -> CodebookPatch:
        """See `Patch.owned_by`."""
        require_owners(owners, len(self.keys), "rows")
        return replace(self, owners=owners)

    def check(self) -> None:
        """See `Patch.check`."""
        count = self.keys.shape[:1]
        fits = self.keys.ndim == 2 and self.values.shape == self.keys.shape
        if not fits or self.radii.shape != count or self.blurs.shape != count:
            shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in self.tensors().items())
            raise EditError(f"A codebook patch does not fit together: {shapes}.")
        if len(self.labels) != len(self.keys) or len(self.shares) != len(self.keys):
            raise EditError(
                f"A codebook patch has {len(self.labels)} labels and {len(self.shares)} marks of "
                f"sharing for {len(self.keys)} rows: its file is not one of ours."
            )
        for name, tensor in self.tensors().items():
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise EditError(f"The {name} of a codebook patch are not all finite float32.")
        if bool((self.radii <= 0).any() or (self.blurs < 0).any()):
            raise EditError("A codebook patch has a radius that is not positive.")


def _concatenated(parts: Sequence[CodebookPatch]) -> CodebookPatch:
    return replace(
        parts[0],
        keys=torch.cat([part.keys for part in parts]),
        values=torch.cat([part.values for part in parts]),
        radii=torch.cat([part.radii for part in parts]),
        blurs=torch.cat([part.blurs for part in parts]),
        labels=tuple(label for part in parts for label in part.labels),
        shares=tuple(is_shared for part in parts for is_shared in part.shares),
        owners=(),
    )
