"""Dense patches: the difference itself, for any parameter of the model (the fine-tuning baselines).

A parameter is named by its path in the model and stands in the model's own orientation; tied
parameters go by the first of their names. A patch's `blocks` give, by path, the lowest block on
which the parameter has an effect: hidden states move from there on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from continual.anatomy import Anatomy
from continual.effects import Reach
from continual.effects.parameters import Delta, ParameterEdits
from continual.errors import EditError
from continual.patches import by_path
from continual.patches.low_rank import Factors
from continual.patches.owners import goes_whole, require_distinct


class Tunable(Protocol):
    """The model that a dense patch is put on."""

    def parameter(self, path: str) -> ParameterEdits:
        """Return the parameter at a path."""


@dataclass(frozen=True)
class DensePatch:
    """Differences by path; float32. Every owner owns the whole patch."""

    kind: ClassVar[str] = "dense"
    is_shared: ClassVar[bool] = True

    deltas: Mapping[str, Tensor]
    blocks: Mapping[str, int]  # of each path
    owners: tuple[str, ...] = ()  # the requests of its training, each once

    @property
    def rows(self) -> int:
        """The number of owners."""
        return len(self.owners)

    @property
    def reach(self) -> Reach:
        """See `Patch.reach`."""
        return Reach(blocks=frozenset(self.blocks.values()))

    def beside(self) -> Mapping[str, tuple[str, ...]]:
        """See `Patch.beside`: nothing."""
        return {}

    def in_parameters(self, anatomy: Anatomy) -> Mapping[str, Factors | None]:
        """See `Patch.in_parameters`: no factors."""
        return dict.fromkeys(self.deltas)

    def tensors(self) -> dict[str, Tensor]:
        """Return the differences by path."""
        return {path: self.deltas[path] for path in sorted(self.deltas)}

    def meta(self) -> dict[str, Any]:
        """Return the block of each path."""
        return by_path.meta_of(self.blocks)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """See `Patch.from_tensors`."""
        return cls(*by_path.read(tensors, meta, "dense patch"))

    def put_on(self, model: Tunable) -> Sequence[Tensor]:
        """See `Patch.put_on`. Raises EditError for two names of one parameter."""
        weights = {path: model.parameter(path) for path in sorted(self.deltas)}
        if len({id(weight) for weight in weights.values()}) < len(weights):
            raise EditError(
                "A dense patch names a parameter twice, which the model ties: it was made on "
                "another model."
            )
        return [
            weight.turned(weight.add(Delta(weight.turned(self.deltas[path]))))
            for path, weight in weights.items()
        ]

    def norm(self) -> float:
        """Return the largest norm of a difference."""
        return max((float(delta.norm()) for delta in self.deltas.values()), default=0.0)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Sequence[DensePatch]:
        """See `Patch.joined`: returns the parts, as a sum of them would be rounded differently."""
        return parts

    def without(self, request_id: str) -> DensePatch | None:
        """See `Patch.without`: whole or not at all. Raises SharedPatch if others own it too."""
        return None if goes_whole(self.owners, request_id, "a dense patch") else self

    def owned_by(self, owners: tuple[str, ...]) -> DensePatch:
        """See `Patch.owned_by`."""
        require_distinct(owners, "dense patch")
        return replace(self, owners=owners)

    def check(self) -> None:
        """See `Patch.check`."""
        if not self.deltas or self.deltas.keys() != self.blocks.keys():
            raise EditError("A dense patch has no parameters, or does not say where they act.")
        for path, delta in self.deltas.items():
            if delta.dtype != torch.float32 or not bool(torch.isfinite(delta).all()):
                raise EditError(f"{path} of a dense patch is not all finite float32 numbers.")
