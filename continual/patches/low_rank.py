"""Low-rank patches: ΔW = L·R on the FFN's output matrix of some blocks (ROME, MEMIT and their kin).

A matrix is edited by float32 additions in one fixed order, column by column of L, each product
rounded before it is added: the same bytes on every machine. Going back is never a subtraction; what
is left is added to the base again. `LowRankPatch` is what a step adds; `EditedWeight` is a matrix
of a model with all that was added to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

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
    def weight_blocks(self) -> tuple[int, ...]:
        """In the order of their edits."""
        return tuple(self.factors)

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


@dataclass(frozen=True)
class WeightSums:
    """Matrices as they are at the end of many steps, where that is less than all the columns.

    For snapshots: a step never is one. What it puts on stands in place of what was added before.
    """

    kind: ClassVar[str] = "weight-sums"

    sums: Mapping[int, Tensor]  # by block [d_ff, d] float32: base and all that was added
    keys: Mapping[int, Tensor] = field(default_factory=dict)  # [m, d_ff] those of these steps
    owners: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, patch: LowRankPatch, model: Editable
    ) -> tuple[LowRankPatch | None, WeightSums | None]:
        """The blocks of a patch whose columns take less room, and the sums of the others as they
        stand on the model."""
        wide = [b for b, f in patch.factors.items() if not f.is_smaller_than_dense]
        few = {b: f for b, f in patch.factors.items() if b not in wide}
        sums = {b: model.weight(b).sum.clone() for b in wide}
        keys = patch.keys
        return (
            LowRankPatch(few, {b: k for b, k in keys.items() if b in few}) if few else None,
            cls(sums, {b: k for b, k in keys.items() if b in sums}) if sums else None,
        )

    @property
    def rows(self) -> int:
        """None that a request owns."""
        return 0

    @property
    def weight_blocks(self) -> tuple[int, ...]:
        """See `Patch.weight_blocks`."""
        return tuple(self.sums)

    def tensors(self) -> dict[str, Tensor]:
        """`B.sum` and, where there are any, `B.keys` for block B."""
        named = {f"{block}.sum": total for block, total in self.sums.items()}
        return named | {f"{block}.keys": keys for block, keys in self.keys.items()}

    def meta(self) -> dict[str, Any]:
        """The blocks."""
        return {"blocks": list(self.sums)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """See `Patch.from_tensors`."""
        try:
            sums = {int(block): tensors[f"{block}.sum"] for block in meta["blocks"]}
        except KeyError as error:
            raise EditError(f"A snapshot has no {error}: its file is not one of ours.") from None
        return cls(sums, {b: tensors[f"{b}.keys"] for b in sums if f"{b}.keys" in tensors})

    def put_on(self, model: Editable) -> Sequence[Tensor]:
        """See `Patch.put_on`."""
        return [
            model.weight(block).replace(total, self.keys.get(block))
            for block, total in self.sums.items()
        ]

    def norm(self) -> float:
        """The largest Frobenius norm."""
        return max((float(total.norm()) for total in self.sums.values()), default=0.0)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Sequence[WeightSums]:
        """See `Patch.joined`."""
        return parts

    def without(self, request_id: str) -> WeightSums:
        """See `Patch.without`: nothing in it is any request's own."""
        return self

    def owned_by(self, owners: tuple[str, ...]) -> WeightSums:
        """See `Patch.owned_by`."""
        require_owners(owners, 0, "rows of requests")
        return self

    def check(self) -> None:
        """See `Patch.check`."""
        for name, tensor in self.tensors().items():
            if tensor.ndim != 2 or tensor.dtype != torch.float32:
                raise EditError(f"{name} of a snapshot is no float32 matrix.")


class EditedWeight:
    """An FFN output matrix of a model: the base, and what was added to it, in order.

    The sum is kept in float32 whatever the model's own precision. `show` puts it into the model,
    `hide` the base.
    """

    def __init__(self, weight: Tensor) -> None:
        """`weight` [d_ff, d]: a view of the model's own parameter."""
        self._weight = weight.detach()
        self._base = self._weight.clone()
        self._sum = self._base.float()  # a copy of its own, in any precision
        if self._sum is self._base:
            self._sum = self._base.clone()
        self._before: Tensor | None = None  # the sum without the last addition
        self._added: list[Factors | Tensor] = []  # a matrix stands in place of what was before it
        self._keys: list[Tensor] = []
        self._is_shown = False

    @property
    def size(self) -> int:
        """How many patches are in the sum."""
        return len(self._added)

    @property
    def base(self) -> Tensor:
        """[d_ff, d] as the base model has it."""
        return self._base

    @property
    def sum(self) -> Tensor:
        """[d_ff, d] float32: base and all that was added."""
        return self._sum

    @property
    def keys(self) -> Tensor:
        """[m, d_ff] the keys that came with the patches, in order."""
        return torch.cat(self._keys) if self._keys else self._sum.new_empty(0, len(self._sum))

    def add(self, factors: Factors, keys: Tensor | None = None) -> Tensor:
        """Add a patch's factors; returns the matrix as it now stands in the model.

        Raises EditError where the factors are of another size than the matrix.
        """
        self._require_shape((len(factors.left), factors.right.shape[1]))
        self._before = self._sum.clone()
        _accumulate(self._sum, factors)
        return self._kept(factors, keys)

    def replace(self, total: Tensor, keys: Tensor | None = None) -> Tensor:
        """Put a sum [d_ff, d] float32 in place of all that was added; returns it as it stands."""
        self._require_shape(tuple(total.shape))
        self._before = self._sum.clone()
        self._sum.copy_(total)
        return self._kept(total, keys)

    def _require_shape(self, shape: tuple[int, ...]) -> None:
        if shape != tuple(self._sum.shape):
            raise EditError(
                f"A low-rank patch is for a matrix {shape}, the model has "
                f"{tuple(self._sum.shape)}: it was made on another model."
            )

    def _kept(self, added: Factors | Tensor, keys: Tensor | None) -> Tensor:
        self._added.append(added)
        self._keys.append(self._sum.new_empty(0, len(self._sum)) if keys is None else keys)
        return self._refreshed()

    def truncate(self, size: int) -> None:
        """Forget all patches but the first `size`."""
        if size == self.size:
            return
        if size == self.size - 1 and self._before is not None:
            self._sum = self._before
        else:
            self._sum = self._base.float().clone()
            for added in self._added[:size]:
                if isinstance(added, Factors):
                    _accumulate(self._sum, added)
                else:
                    self._sum.copy_(added)
        self._before = None
        del self._added[size:], self._keys[size:]
        self._refreshed()

    def show(self) -> None:
        """The model runs with the sum from here on."""
        self._is_shown = True
        self._refreshed()

    def hide(self) -> None:
        """The model runs with the base from here on."""
        self._weight.copy_(self._base)
        self._is_shown = False

    def _refreshed(self) -> Tensor:
        """The matrix in the model's precision, and in the model where it is shown."""
        if not self._is_shown:
            return self._sum.to(self._weight.dtype)
        self._weight.copy_(self._sum)
        return self._weight


def _accumulate(total: Tensor, factors: Factors) -> None:
    """total += left @ right, one outer product after another, each rounded to float32 first."""
    product = torch.empty_like(total)
    columns = factors.left.to(total).T.contiguous()
    for column, row in zip(columns, factors.right.to(total), strict=True):
        torch.mul(column[:, None], row, out=product)
        total.add_(product)
