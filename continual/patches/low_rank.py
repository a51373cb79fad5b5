"""Low-rank patches: ΔW = L·R on the FFN's output matrix of some blocks (ROME, MEMIT and their kin).

A matrix is edited by float32 additions in one fixed order, column by column of L, each product
rounded before it is added: the same bytes on every machine. `LowRankPatch` is what a step adds; the
matrix with all that was added to it is an `EditedWeight`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from continual.effects import Reach
from continual.effects.parameters import EditedWeight
from continual.errors import EditError
from continual.patches.owners import others_places, require_owners


class Editable(Protocol):
    """What a low-rank patch needs of the model that it is put on."""

    def weight(self, block: int) -> EditedWeight:
        """The FFN's output matrix of a block."""


@dataclass(frozen=True)
class Factors:
    """ΔW = left @ right for W [d_ff, d]; float32."""

    left: Tensor  # [d_ff, n]
    right: Tensor  # [n, d]

    @classmethod
    def joined(cls, parts: Sequence[Factors]) -> Factors:
        """The columns of all of them, in order."""
        left = torch.cat([part.left for part in parts], 1)
        return cls(left, torch.cat([part.right for part in parts]))

    def chosen(self, columns: Sequence[int]) -> Factors:
        """The outer products of these columns alone."""
        places = torch.tensor(columns, dtype=torch.long, device=self.left.device)
        return Factors(self.left[:, places].contiguous(), self.right[places])

    @property
    def shape(self) -> tuple[int, ...]:
        """[d_ff, d]; see `Addition`."""
        return len(self.left), self.right.shape[1]

    @property
    def is_dense(self) -> bool:
        """See `Addition`."""
        return False

    def add_to(self, total: Tensor) -> None:
        """One outer product after another, each rounded to float32 before it is added."""
        product = torch.empty_like(total)
        columns = self.left.to(total).T.contiguous()
        for column, row in zip(columns, self.right.to(total), strict=True):
            torch.mul(column[:, None], row, out=product)
            total.add_(product)

    @property
    def is_smaller_than_dense(self) -> bool:
        """Whether the factors have fewer numbers than the matrix."""
        return self.left.numel() + self.right.numel() < len(self.left) * self.right.shape[1]

    def norm(self) -> float:
        """The Frobenius norm of ΔW, from the factors."""
        left, right = self.left.double(), self.right.double()
        return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())


@dataclass(frozen=True)
class LowRankPatch:
    """Factors by block; and by block the keys [m, d_ff] that an editor asks later steps to mind."""

    kind: ClassVar[str] = "low-rank"

    factors: Mapping[int, Factors]
    keys: Mapping[int, Tensor] = field(default_factory=dict)
    owners: tuple[str, ...] = ()  # [n] the request of each column, in every block, where known

    @property
    def rows(self) -> int:
        """How many columns L has, in the block that has most."""
        return max((factors.left.shape[1] for factors in self.factors.values()), default=0)

    @property
    def reach(self) -> Reach:
        """See `Patch.reach`."""
        return Reach(blocks=frozenset(self.factors))

    def tensors(self) -> dict[str, Tensor]:
        """`B.left`, `B.right` and, where there are any, `B.keys` for block B."""
        named: dict[str, Tensor] = {}
        for block, factors in self.factors.items():
            named |= {f"{block}.left": factors.left, f"{block}.right": factors.right}
        return named | {f"{block}.keys": keys for block, keys in self.keys.items()}

    def meta(self) -> dict[str, Any]:
        """The blocks, in the order of their edits."""
        return {"blocks": list(self.factors)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """See `Patch.from_tensors`."""
        try:
            blocks = [int(block) for block in meta["blocks"]]
            factors = {b: Factors(tensors[f"{b}.left"], tensors[f"{b}.right"]) for b in blocks}
        except KeyError as error:
            raise EditError(
                f"A low-rank patch has no {error}: its file is not one of ours."
            ) from None
        return cls(factors, {b: tensors[f"{b}.keys"] for b in blocks if f"{b}.keys" in tensors})

    def put_on(self, model: Editable) -> Sequence[Tensor]:
        """See `Patch.put_on`."""
        return [
            model.weight(block).add(factors, self.keys.get(block))
            for block, factors in self.factors.items()
        ]

    def norm(self) -> float:
        """The largest Frobenius norm of a ΔW."""
        return max((factors.norm() for factors in self.factors.values()), default=0.0)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> list[LowRankPatch]:
        """See `Patch.joined`: all columns, in the order in which they are added."""
        blocks = dict.fromkeys(block for part in parts for block in part.factors)
        factors = {
            b: Factors.joined([p.factors[b] for p in parts if b in p.factors]) for b in blocks
        }
        keys = {b: [p.keys[b] for p in parts if b in p.keys] for b in blocks}
        return [LowRankPatch(factors, {b: torch.cat(some) for b, some in keys.items() if some})]

    def without(self, request_id: str) -> LowRankPatch | None:
        """See `Patch.without`: its columns go, those of others stay as they were solved."""
        kept = others_places(self.owners, request_id)
        if len(kept) == len(self.owners):
            return self
        if not kept:
            return None
        return replace(
            self,
            factors={b: f.chosen(kept) for b, f in self.factors.items()},
            keys={b: k[kept] if len(k) == len(self.owners) else k for b, k in self.keys.items()},
            owners=tuple(self.owners[place] for place in kept),
        )

    def owned_by(self, owners: tuple[str, ...]) -> LowRankPatch:
        """See `Patch.owned_by`."""
        for factors in self.factors.values():
            require_owners(owners, factors.left.shape[1], "columns")
        return replace(self, owners=owners)

    def check(self) -> None:
        """See `Patch.check`."""
        for block, factors in self.factors.items():
            left, right = factors.left, factors.right
            if left.ndim != 2 or right.ndim != 2 or left.shape[1] != len(right):
                raise EditError(
                    f"A low-rank patch does not fit together at block {block}: left "
                    f"{tuple(left.shape)}, right {tuple(right.shape)}."
                )
            keys = self.keys.get(block)
            if keys is not None and (keys.ndim != 2 or keys.shape[1] != len(left)):
                raise EditError(
                    f"A low-rank patch does not fit together at block {block}: left "
                    f"{tuple(left.shape)}, keys {tuple(keys.shape)}."
                )
        for name, tensor in self.tensors().items():
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise EditError(f"{name} of a low-rank patch is not all finite float32 numbers.")
