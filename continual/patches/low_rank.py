"""Low-rank patches: ΔW = L·R on matrices of linear layers (ROME, MEMIT and their kin, MEND, LoRA).

Every matrix is seen as [inputs, outputs], so that a row of activations is multiplied from the left,
however the model stores it. It is edited by float32 additions in one fixed order, column by column
of L, each product rounded before it is added: the same bytes on every machine. A step adds a
`LowRankPatch`, which names its matrices by their paths; `FfnLowRankPatch` names FFN output matrices
by their blocks. The matrix with all additions is an `EditedWeight`; where nothing is
written into it, its factors stand beside it (`effects.factors`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from continual.anatomy import Anatomy
from continual.effects import Reach
from continual.effects.parameters import ParameterEdits
from continual.errors import EditError
from continual.patches.owners import others_places, require_owners


class Editable(Protocol):
    """The model that a low-rank patch is put on."""

    def weight(self, block: int) -> ParameterEdits:
        """Return the FFN's output matrix of a block."""

    def matrix(self, path: str) -> ParameterEdits:
        """Return the matrix of a linear layer at a path, as [inputs, outputs]."""


@dataclass(frozen=True)
class Factors:
    """ΔW = left @ right for W [inputs, outputs]; float32."""

    left: Tensor  # [inputs, n]
    right: Tensor  # [n, outputs]

    @classmethod
    def joined(cls, parts: Sequence[Factors]) -> Factors:
        """Join the columns of all parts, in order."""
        left = torch.cat([part.left for part in parts], 1)
        return cls(left, torch.cat([part.right for part in parts]))

    def chosen(self, columns: Sequence[int]) -> Factors:
        """Return the outer products of these columns alone."""
        places = torch.tensor(columns, dtype=torch.long, device=self.left.device)
        return Factors(self.left[:, places].contiguous(), self.right[places])

    @property
    def shape(self) -> tuple[int, ...]:
        """[inputs, outputs]; see `Addition`."""
        return len(self.left), self.right.shape[1]

    @property
    def is_dense(self) -> bool:
        """See `Addition`."""
        return False

    @property
    def product(self) -> tuple[Tensor, Tensor]:
        """See `Addition`."""
        return self.left, self.right

    def add_to(self, total: Tensor) -> None:
        """Add one outer product after another, each rounded to float32 before it is added."""
        product = torch.empty_like(total)
        columns = self.left.to(total).T.contiguous()
        for column, row in zip(columns, self.right.to(total), strict=True):
            torch.mul(column[:, None], row, out=product)
            total.add_(product)

    @property
    def is_smaller_than_dense(self) -> bool:
        """True if the factors have fewer numbers than the matrix."""
        return self.left.numel() + self.right.numel() < len(self.left) * self.right.shape[1]

    def norm(self) -> float:
        """Return the Frobenius norm of ΔW, from the factors."""
        left, right = self.left.double(), self.right.double()
        return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())


@dataclass(frozen=True)
class LowRankPatch:
    """Factors by the path of the matrix, and the keys that later steps have to take into account.

    The paths are those of `named_parameters`, as in a `DensePatch`.
    """

    kind: ClassVar[str] = "low-rank-by-path"
    is_shared: ClassVar[bool] = False

    factors: Mapping[str, Factors]
    blocks: Mapping[str, int]  # of each path: the first block whose output depends on it
    keys: Mapping[str, Tensor] = field(default_factory=dict)  # [m, inputs]
    owners: tuple[str, ...] = ()  # [n] the request of each column, in every matrix, where known

    @property
    def rows(self) -> int:
        """The number of columns of L, in the matrix with the most."""
        return max((factors.left.shape[1] for factors in self.factors.values()), default=0)

    @property
    def reach(self) -> Reach:
        """See `Patch.reach`."""
        return Reach(blocks=frozenset(self.blocks.values()))

    def beside(self) -> Mapping[str, tuple[str, ...]]:
        """See `Patch.beside`: nothing."""
        return {}

    def in_parameters(self, anatomy: Anatomy) -> Mapping[str, Factors | None]:
        """See `Patch.in_parameters`: the factors of each matrix."""
        return {self.path(anatomy, name): factors for name, factors in self.factors.items()}

    @classmethod
    def path(cls, anatomy: Anatomy, name: str) -> str:
        """Return the path of a matrix by its name."""
        return name

    @property
    def names(self) -> Sequence[str]:
        """The matrices, in the order of their edits."""
        return sorted(self.factors)

    @classmethod
    def weight(cls, model: Editable, name: str) -> ParameterEdits:
        """Return a model's matrix by its name. Raises ModelError if there is none, or if a low-rank
        patch cannot edit it."""
        return model.matrix(name)

    def tensors(self) -> dict[str, Tensor]:
        """Return `PATH.left`, `PATH.right` and, if there are any, `PATH.keys`."""
        tensors: dict[str, Tensor] = {}
        for name, factors in self.factors.items():
            tensors |= {f"{name}.left": factors.left, f"{name}.right": factors.right}
        return tensors | {f"{name}.keys": keys for name, keys in self.keys.items()}

    def meta(self) -> dict[str, Any]:
        """Return the block of each path."""
        return {"parameters": {name: self.blocks[name] for name in self.names}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """See `Patch.from_tensors`."""
        try:
            blocks = cls.blocks_in(meta)
            factors = {n: Factors(tensors[f"{n}.left"], tensors[f"{n}.right"]) for n in blocks}
        except KeyError as error:
            raise EditError(
                f"A low-rank patch has no {error}: its file is not one of ours."
            ) from None
        keys = {n: tensors[f"{n}.keys"] for n in blocks if f"{n}.keys" in tensors}
        return cls(factors, blocks, keys)

    @classmethod
    def blocks_in(cls, meta: Mapping[str, Any]) -> dict[str, int]:
        """Read the block of each matrix from `meta`."""
        return {str(path): int(block) for path, block in meta["parameters"].items()}

    def put_on(self, model: Editable) -> Sequence[Tensor]:
        """See `Patch.put_on`."""
        weights = {name: self.weight(model, name) for name in self.names}
        return [w.add(self.factors[name], self.keys.get(name)) for name, w in weights.items()]

    def norm(self) -> float:
        """Return the largest Frobenius norm of a ΔW."""
        return max((factors.norm() for factors in self.factors.values()), default=0.0)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> list[Self]:
        """See `Patch.joined`: joins all columns, in the order of their addition."""
        blocks = {name: block for part in parts for name, block in part.blocks.items()}
        factors = {
            n: Factors.joined([p.factors[n] for p in parts if n in p.factors]) for n in blocks
        }
        keys = {n: [p.keys[n] for p in parts if n in p.keys] for n in blocks}
        return [
            cls(factors, blocks, {n: torch.cat(tensors) for n, tensors in keys.items() if tensors})
        ]

    def without(self, request_id: str) -> Self | None:
        """See `Patch.without`: its columns go, the others' stay as they were solved."""
        places = others_places(self.owners, request_id)
        if len(places) == len(self.owners):
            return self
        if not places:
            return None
        return replace(
            self,
            factors={n: f.chosen(places) for n, f in self.factors.items()},
            keys={n: k[places] if len(k) == len(self.owners) else k for n, k in self.keys.items()},
            owners=tuple(self.owners[place] for place in places),
        )

    def owned_by(self, owners: tuple[str, ...]) -> Self:
        """See `Patch.owned_by`."""
        for factors in self.factors.values():
            require_owners(owners, factors.left.shape[1], "columns")
        return replace(self, owners=owners)

    def check(self) -> None:
        """See `Patch.check`."""
        if not self.factors or self.factors.keys() != self.blocks.keys():
            raise EditError("A low-rank patch has no matrices, or does not say where they act.")
        for name, factors in self.factors.items():
            self._check_shapes(self.label(name), factors, self.keys.get(name))
        for name, tensor in self.tensors().items():
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise EditError(f"{name} of a low-rank patch is not all finite float32 numbers.")

    @staticmethod
    def _check_shapes(where: str, factors: Factors, keys: Tensor | None) -> None:
        left, right = factors.left, factors.right
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != len(right):
            raise EditError(
                f"A low-rank patch does not fit together at {where}: left "
                f"{tuple(left.shape)}, right {tuple(right.shape)}."
            )
        if keys is not None and (keys.ndim != 2 or keys.shape[1] != len(left)):
            raise EditError(
                f"A low-rank patch does not fit together at {where}: left "
                f"{tuple(left.shape)}, keys {tuple(keys.shape)}."
            )

    @classmethod
    def label(cls, name: str) -> str:
        """Return the name of a matrix for messages."""
        return name


class OfBlocks:
    """FFN output matrices, each named by its block's number."""

    @classmethod
    def weight(cls, model: Editable, name: str) -> ParameterEdits:
        """Return the FFN's output matrix of a block."""
        return model.weight(int(name))

    @classmethod
    def blocks_in(cls, meta: Mapping[str, Any]) -> dict[str, int]:
        """Read the block of each matrix, in the order of their edits."""
        return {str(int(block)): int(block) for block in meta["blocks"]}

    @classmethod
    def path(cls, anatomy: Anatomy, name: str) -> str:
        """Return the path of a block's FFN output matrix."""
        return anatomy.down_path(int(name))

    @classmethod
    def label(cls, name: str) -> str:
        """Return the name of a matrix for messages."""
        return f"block {name}"


@dataclass(frozen=True)
class FfnLowRankPatch(OfBlocks, LowRankPatch):
    """A low-rank patch of FFN output matrices, in cedit's first form.

    The methods that write to FFN output matrices keep this form, so that a replay of their
    histories gives the same bytes and fingerprints.
    """

    kind: ClassVar[str] = "low-rank"

    @classmethod
    def of(
        cls,
        factors: Mapping[int, Factors],
        keys: Mapping[int, Tensor] | None = None,
        owners: tuple[str, ...] = (),
    ) -> Self:
        """Make a patch of factors and keys by block."""
        factors_by_name = {str(block): entry for block, entry in factors.items()}
        keys_by_name = {str(block): entry for block, entry in (keys or {}).items()}
        return cls(factors_by_name, {str(block): block for block in factors}, keys_by_name, owners)

    @property
    def names(self) -> Sequence[str]:
        """See `LowRankPatch.names`: in the order in which they were given."""
        return list(self.factors)

    def meta(self) -> dict[str, Any]:
        """Return the blocks, in the order of their edits."""
        return {"blocks": [self.blocks[name] for name in self.names]}
