"""Parameters as they are at the end of many steps, where that is less than all that was added.

For snapshots: a step never is one. What they put on stands in the place of what was added before.
`WeightSums` are FFN output matrices, by block, with the keys that came with their patches;
`ParameterSums` are any parameters, by path. `summed` chooses between them and the patches' factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from continual.effects import Reach
from continual.effects.parameters import EditedWeight, Total
from continual.errors import EditError
from continual.patches.low_rank import LowRankPatch
from continual.patches.owners import require_owners

if TYPE_CHECKING:
    from continual.patches import Patch


class Summable(Protocol):
    """What sums are read from, and put on."""

    def weight(self, block: int) -> EditedWeight:
        """The FFN's output matrix of a block."""

    def parameter(self, path: str) -> EditedWeight:
        """The parameter at a path."""


def summed(
    low_rank: LowRankPatch | None, dense: Mapping[str, int], model: Summable
) -> list[LowRankPatch | WeightSums | ParameterSums]:
    """What the low-rank and dense patches of a segment come to, as they stand on the model; `dense`
    has the paths of the latter with their blocks.

    Factors stay factors where they take less room than the matrix and no dense patch is in it.
    """
    paths = {id(model.parameter(path)): path for path in dense}
    factors = {} if low_rank is None else low_rank.factors
    keys = {} if low_rank is None else low_rank.keys
    few = {
        block: own
        for block, own in factors.items()
        if own.is_smaller_than_dense and id(model.weight(block)) not in paths
    }
    wide = [block for block in factors if block not in few]
    for block in wide:
        paths.pop(id(model.weight(block)), None)
    parameters = {path: model.parameter(path) for path in sorted(paths.values())}
    found: list[LowRankPatch | WeightSums | ParameterSums] = []
    if few:
        found.append(LowRankPatch(few, {b: k for b, k in keys.items() if b in few}))
    if wide:
        sums = {block: model.weight(block).sum.clone() for block in wide}
        found.append(WeightSums(sums, {b: k for b, k in keys.items() if b in sums}))
    if parameters:
        totals = {p: w.turned(w.sum).contiguous().clone() for p, w in parameters.items()}
        found.append(ParameterSums(totals, {path: dense[path] for path in totals}))
    return found


def without_superseded(earlier: Sequence[Patch], later: Sequence[Patch]) -> list[Patch]:
    """The earlier parts without the sums in whose places later ones stand."""
    gone = {path for part in later if isinstance(part, ParameterSums) for path in part.sums}
    kept: list[Patch] = []
    for part in earlier:
        if isinstance(part, ParameterSums):
            left = {path: total for path, total in part.sums.items() if path not in gone}
            if left:
                kept.append(replace(part, sums=left, blocks={p: part.blocks[p] for p in left}))
        else:
            kept.append(part)
    return kept


class _Sums:
    """What sums of any kind have in common: nothing in them is a request's own."""

    sums: Mapping[Any, Tensor]
    owners: tuple[str, ...]

    @property
    def rows(self) -> int:
        """None that a request owns."""
        return 0

    def norm(self) -> float:
        """The largest norm of a sum."""
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
class WeightSums(_Sums):
    """FFN output matrices as they are at the end of many steps."""

    kind: ClassVar[str] = "weight-sums"

    sums: Mapping[int, Tensor]  # by block [d_ff, d] float32: base and all that was added
    keys: Mapping[int, Tensor] = field(default_factory=dict)  # [m, d_ff] those of these steps
    owners: tuple[str, ...] = ()

    @property
    def reach(self) -> Reach:
        """See `Patch.reach`."""
        return Reach(blocks=frozenset(self.sums))

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

    def put_on(self, model: Summable) -> Sequence[Tensor]:
        """See `Patch.put_on`."""
        return [
            model.weight(block).add(Total(total), self.keys.get(block))
            for block, total in self.sums.items()
        ]

    def check(self) -> None:
        """See `Patch.check`."""
        for name, tensor in self.tensors().items():
            if tensor.ndim != 2 or tensor.dtype != torch.float32:
                raise EditError(f"{name} of a snapshot is no float32 matrix.")


@dataclass(frozen=True)
class ParameterSums(_Sums):
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
        """The sums by path."""
        return {path: self.sums[path] for path in sorted(self.sums)}

    def meta(self) -> dict[str, Any]:
        """The block of each path."""
        return {"parameters": {path: self.blocks[path] for path in sorted(self.sums)}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """See `Patch.from_tensors`."""
        try:
            blocks = {str(path): int(block) for path, block in meta["parameters"].items()}
            return cls({path: tensors[path] for path in blocks}, blocks)
        except KeyError as error:
            raise EditError(f"A snapshot has no {error}: its file is not one of ours.") from None

    def put_on(self, model: Summable) -> Sequence[Tensor]:
        """See `Patch.put_on`."""
        weights = {path: model.parameter(path) for path in sorted(self.sums)}
        return [w.add(Total(w.turned(self.sums[path]))) for path, w in weights.items()]

    def check(self) -> None:
        """See `Patch.check`."""
        for name, tensor in self.sums.items():
            if tensor.dtype != torch.float32:
                raise EditError(f"{name} of a snapshot is not float32.")
