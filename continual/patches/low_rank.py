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
from continual.patches.owners import require_owners


class Editable(Protocol):
    """What a low-rank patch needs of the model that it is put on."""

    def weight(self, block: int) -> EditedWeight:
        """The FFN's output matrix of a block."""


@dataclass(frozen=True)
class Factors:
    """ΔW = left @ right for W [d_ff, d]; float32."""

    left: Tensor  # [d_ff, n]
    right: Tensor  # [n, d]

    def chosen(self, columns: Sequence[int]) -> Factors:
        """The outer products of these columns alone."""
        places = torch.tensor(columns, dtype=torch.long, device=self.left.device)
        return Factors(self.left[:, places].contiguous(), self.right[places])

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

    def without(self, request_id: str) -> LowRankPatch | None:
        """See `Patch.without`: its columns go, those of others stay as they were solved."""
        kept = [place for place, owner in enumerate(self.owners) if owner != request_id]
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
        self._added: list[Factors] = []
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
        shape = (len(factors.left), factors.right.shape[1])
        if shape != tuple(self._sum.shape):
            raise EditError(
                f"A low-rank patch is for a matrix {shape}, the model has "
                f"{tuple(self._sum.shape)}: it was made on another model."
            )
        self._before = self._sum.clone()
        _accumulate(self._sum, factors)
        self._added.append(factors)
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
            for factors in self._added[:size]:
                _accumulate(self._sum, factors)
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
