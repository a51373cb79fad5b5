"""Parameters as they are at the end of many steps, if that takes less room than the additions.

For snapshots: no step adds one. A sum that is put on replaces everything added before. `MatrixSums`
are matrices by path and `WeightSums` FFN output matrices by block, with the keys that came with
their low-rank patches; `ParameterSums` are any parameters, by path. `summed` chooses between them
and the patches' factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from continual.anatomy import Anatomy
from continual.effects import Reach
from continual.effects.parameters import ParameterEdits, Total
from continual.errors import EditError
from continual.patches import by_path
from continual.patches.gradient import GradientPatch, rows_in
from continual.patches.low_rank import Factors, FfnLowRankPatch, LowRankPatch, OfBlocks
from continual.patches.owners import require_owners

if TYPE_CHECKING:
    from continual.patches import Patch


class Summable(Protocol):
    """The model that sums are read from, and put on."""

    def weight(self, block: int) -> ParameterEdits:
        """Return the FFN's output matrix of a block."""

    def matrix(self, path: str) -> ParameterEdits:
        """Return the matrix of a linear layer at a path, as [inputs, outputs]."""

    def parameter(self, path: str) -> ParameterEdits:
        """Return the parameter at a path."""


def summed(
    low_rank: Sequence[LowRankPatch], dense: Mapping[str, int], model: Summable
) -> list[LowRankPatch | MatrixSums | ParameterSums]:
    """Sum up a segment's low-rank patches, in their order, and its dense ones, as they stand on the
    model; `dense` has the dense patches' paths with their blocks.

    Factors stay factors if they take less room than the matrix and no other kind of patch edits it.
    """
    paths = {id(model.parameter(path)): path for path in dense}
    matrices = _by_matrix(low_rank, model)
    factor_matrices = [m for m in matrices if m.stays_factors and id(m.weight) not in paths]
    sum_matrices = [m for m in matrices if m not in factor_matrices]
    for matrix in sum_matrices:
        paths.pop(id(matrix.weight), None)
    parts: list[LowRankPatch | MatrixSums | ParameterSums] = []
    for kind in (FfnLowRankPatch, LowRankPatch, GradientPatch):
        group = {m.name: m for m in factor_matrices if m.kind is kind}
        if group:
            parts.append(_as_factors(kind, group))
        group = {m.name: m for m in sum_matrices if m.kind is kind}
        if group:
            parts.append(_as_sums(kind, group))
    parameters = {path: model.parameter(path) for path in sorted(paths.values())}
    if parameters:
        totals = {p: w.turned(w.sum).contiguous().clone() for p, w in parameters.items()}
        parts.append(ParameterSums(totals, {path: dense[path] for path in totals}))
    return parts


@dataclass(eq=False)
class _SegmentMatrix:
    """A matrix with all low-rank patches of a segment that edit it, in their order."""

    name: str
    kind: type[LowRankPatch]  # by path, if any of its patches is; with rows, if any has them
    weight: ParameterEdits
    block: int
    parts: list[tuple[LowRankPatch, str]] = field(default_factory=list)  # with its name in each

    def take(self, part: LowRankPatch, name: str) -> None:
        """Take in a patch that edits the matrix under this name."""
        if not isinstance(part, FfnLowRankPatch):
            has_rows = GradientPatch in (self.kind, type(part))
            self.kind = GradientPatch if has_rows else LowRankPatch
            self.name, self.block = name, part.blocks[name]
        self.parts.append((part, name))

    @cached_property
    def factors(self) -> Factors:
        """The columns of all of its patches."""
        return Factors.joined([part.factors[name] for part, name in self.parts])

    @property
    def keys(self) -> Tensor | None:
        """The keys [m, inputs] of all of its patches; None if there are none."""
        keys = [part.keys[name] for part, name in self.parts if name in part.keys]
        return torch.cat(keys) if keys else None

    @property
    def gradient_rows(self) -> Tensor | None:
        """The rows [m, inputs + outputs] of all of its patches; None if there are none."""
        parts = [(p, n) for p, n in self.parts if isinstance(p, GradientPatch)]
        return torch.cat([part.gradient_rows[name] for part, name in parts]) if parts else None

    @property
    def stays_factors(self) -> bool:
        """True if the factors take less room than the matrix, or nothing is written into it."""
        return self.weight.stays_factors or self.factors.is_smaller_than_dense


def _by_matrix(low_rank: Sequence[LowRankPatch], model: Summable) -> list[_SegmentMatrix]:
    """Return the matrices of some patches, in the order of their first edits."""
    matrices: dict[int, _SegmentMatrix] = {}
    for part in low_rank:
        for name in part.factors:
            weight = part.weight(model, name)
            matrix = _SegmentMatrix(name, type(part), weight, part.blocks[name])
            matrices.setdefault(id(weight), matrix).take(part, name)
    return list(matrices.values())


def _blocks_of(matrices: Mapping[str, _SegmentMatrix]) -> dict[str, int]:
    return {name: matrix.block for name, matrix in matrices.items()}


def _keys_of(matrices: Mapping[str, _SegmentMatrix]) -> dict[str, Tensor]:
    keys = {name: matrix.keys for name, matrix in matrices.items()}
    return {name: tensor for name, tensor in keys.items() if tensor is not None}


def _rows_of(matrices: Mapping[str, _SegmentMatrix]) -> dict[str, Tensor]:
    rows = {name: matrix.gradient_rows for name, matrix in matrices.items()}
    return {name: tensor for name, tensor in rows.items() if tensor is not None}


def _as_factors(kind: type[LowRankPatch], group: Mapping[str, _SegmentMatrix]) -> LowRankPatch:
    """Join the factors of some matrices, all of one kind, to one patch."""
    factors, blocks = {name: m.factors for name, m in group.items()}, _blocks_of(group)
    if kind is GradientPatch:
        rows = _rows_of(group)
        return GradientPatch(factors, blocks, _keys_of(group), gradient_rows=rows)
    return kind(factors, blocks, _keys_of(group))


def _as_sums(kind: type[LowRankPatch], group: Mapping[str, _SegmentMatrix]) -> MatrixSums:
    """Write down some matrices, all of one kind, as they stand."""
    sums, blocks = {name: m.weight.sum.clone() for name, m in group.items()}, _blocks_of(group)
    if kind is GradientPatch:
        return GradientSums(sums, blocks, _keys_of(group), gradient_rows=_rows_of(group))
    sums_kind = WeightSums if kind is FfnLowRankPatch else MatrixSums
    return sums_kind(sums, blocks, _keys_of(group))


def without_superseded(earlier: Sequence[Patch], later: Sequence[Patch]) -> list[Patch]:
    """Return the earlier parts without sums that later sums replace."""
    replaced_paths = {
        path for part in later if isinstance(part, ParameterSums) for path in part.sums
    }
    parts: list[Patch] = []
    for part in earlier:
        if isinstance(part, ParameterSums):
            sums = {path: total for path, total in part.sums.items() if path not in replaced_paths}
            if sums:
                parts.append(replace(part, sums=sums, blocks={p: part.blocks[p] for p in sums}))
        else:
            parts.append(part)
    return parts


class _SumPatch:
    """The common part of all kinds of sums: no request owns anything in them."""

    is_shared: ClassVar[bool] = False

    sums: Mapping[Any, Tensor]
    owners: tuple[str, ...]

    @property
    def rows(self) -> int:
        """0: no request owns any."""
        return 0

    def beside(self) -> Mapping[str, tuple[str, ...]]:
        """See `Patch.beside`: nothing."""
        return {}

    def in_parameters(self, anatomy: Anatomy) -> Mapping[str, Factors | None]:
        """See `Patch.in_parameters`: no factors."""
        return dict.fromkeys(self.sums)

    def norm(self) -> float:
        """Return the largest norm of a sum."""
        return max((float(total.norm()) for total in self.sums.values()), default=0.0)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Sequence[Self]:
        """See `Patch.joined`."""
        return parts

    def without(self, request_id: str) -> Self:
        """See `Patch.without`."""
        return self

    def owned_by(self, owners: tuple[str, ...]) -> Self:
        """See `Patch.owned_by`."""
        require_owners(owners, 0, "rows of requests")
        return self


@dataclass(frozen=True)
class MatrixSums(_SumPatch):
    """Matrices as they are at the end of many steps."""

    kind: ClassVar[str] = "matrix-sums"

    sums: Mapping[str, Tensor]  # by path [inputs, outputs] float32: base and all additions
    blocks: Mapping[str, int]  # as in `LowRankPatch`
    keys: Mapping[str, Tensor] = field(default_factory=dict)  # [m, inputs] of these steps
    owners: tuple[str, ...] = ()

    @property
    def reach(self) -> Reach:
        """See `Patch.reach`."""
        return Reach(blocks=frozenset(self.blocks.values()))

    @classmethod
    def weight(cls, model: Summable, name: str) -> ParameterEdits:
        """See `LowRankPatch.weight`."""
        return model.matrix(name)

    def tensors(self) -> dict[str, Tensor]:
        """Return `PATH.sum` and, if there are any, `PATH.keys`."""
        tensors = {f"{name}.sum": total for name, total in self.sums.items()}
        return tensors | {f"{name}.keys": keys for name, keys in self.keys.items()}

    def meta(self) -> dict[str, Any]:
        """Return the block of each path."""
        return {"parameters": {path: self.blocks[path] for path in sorted(self.sums)}}

    @classmethod
    def blocks_in(cls, meta: Mapping[str, Any]) -> dict[str, int]:
        """Read the block of each matrix from `meta`."""
        return {str(path): int(block) for path, block in meta["parameters"].items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """See `Patch.from_tensors`."""
        try:
            blocks = cls.blocks_in(meta)
            sums = {name: tensors[f"{name}.sum"] for name in blocks}
        except KeyError as error:
            raise EditError(f"A snapshot has no {error}: its file is not one of ours.") from None
        keys = {n: tensors[f"{n}.keys"] for n in blocks if f"{n}.keys" in tensors}
        return cls(sums, blocks, keys)

    def put_on(self, model: Summable) -> Sequence[Tensor]:
        """See `Patch.put_on`."""
        return [
            self.weight(model, name).add(Total(total), self.keys.get(name))
            for name, total in self.sums.items()
        ]

    def check(self) -> None:
        """See `Patch.check`."""
        for name, tensor in self.tensors().items():
            if tensor.ndim != 2 or tensor.dtype != torch.float32:
                raise EditError(f"{name} of a snapshot is no float32 matrix.")


@dataclass(frozen=True)
class WeightSums(OfBlocks, MatrixSums):
    """FFN output matrices by block, as `FfnLowRankPatch` has them."""

    kind: ClassVar[str] = "weight-sums"

    def in_parameters(self, anatomy: Anatomy) -> Mapping[str, Factors | None]:
        """See `Patch.in_parameters`: no factors."""
        return {self.path(anatomy, name): None for name in self.sums}

    def meta(self) -> dict[str, Any]:
        """Return the blocks."""
        return {"blocks": [self.blocks[name] for name in self.sums]}


@dataclass(frozen=True)
class GradientSums(MatrixSums):
    """Matrices with the rows that came with their patches, as a `GradientPatch` has them."""

    kind: ClassVar[str] = "gradient-sums"

    gradient_rows: Mapping[str, Tensor] = field(default_factory=dict)  # [m, inputs + outputs]

    def tensors(self) -> dict[str, Tensor]:
        """Return `PATH.sum`, `PATH.keys` if there are any, and `PATH.rows`."""
        return super().tensors() | {f"{n}.rows": rows for n, rows in self.gradient_rows.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """See `Patch.from_tensors`."""
        sums = super().from_tensors(tensors, meta)
        return replace(sums, gradient_rows=rows_in(tensors, sums.blocks))

    def put_on(self, model: Summable) -> Sequence[Tensor]:
        """See `Patch.put_on`."""
        return [
            self.weight(model, name).add(
                Total(total), self.keys.get(name), self.gradient_rows.get(name)
            )
            for name, total in self.sums.items()
        ]


@dataclass(frozen=True)
class ParameterSums(_SumPatch):
    """Any parameters as they are at the end of many steps."""

    kind: ClassVar[str] = "parameter-sums"

    sums: Mapping[str, Tensor]  # by path, float32, as the model stores them
    blocks: Mapping[str, int]  # as in `DensePatch`
    owners: tuple[str, ...] = ()

    @property
    def reach(self) -> Reach:
        """See `Patch.reach`."""
        return Reach(blocks=frozenset(self.blocks.values()))

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums by path."""
        return {path: self.sums[path] for path in sorted(self.sums)}

    def meta(self) -> dict[str, Any]:
        """Return the block of each path."""
        return by_path.meta_of(self.blocks)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """See `Patch.from_tensors`."""
        return cls(*by_path.read(tensors, meta, "snapshot"))

    def put_on(self, model: Summable) -> Sequence[Tensor]:
        """See `Patch.put_on`."""
        weights = {path: model.parameter(path) for path in sorted(self.sums)}
        return [w.add(Total(w.turned(self.sums[path]))) for path, w in weights.items()]

    def check(self) -> None:
        """See `Patch.check`."""
        for name, tensor in self.sums.items():
            if tensor.dtype != torch.float32:
                raise EditError(f"{name} of a snapshot is not float32.")
