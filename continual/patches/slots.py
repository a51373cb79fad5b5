"""Slot patches: neurons without thresholds, which a batch of requests shares (CaliNet, Dong et al.
2022).

    FFN_p(q) = FFN(q) + relu(q·K)·V

A running model has them among the neurons of their place, with a bias of zero. Every owner owns all
of them: nothing tells apart which slot holds which request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from continual.anatomy import Anatomy
from continual.effects import Reach
from continual.effects.gated import kinds_of
from continual.effects.places import GatePlace
from continual.errors import EditError
from continual.patches.low_rank import Factors
from continual.patches.neuron import Mountable, NeuronPatch, neurons_at
from continual.patches.owners import goes_whole, require_distinct


@dataclass(frozen=True)
class SlotsPatch:
    """s slots at one place; float32."""

    kind: ClassVar[str] = "slots"
    is_shared: ClassVar[bool] = True

    place: GatePlace
    keys: Tensor  # [s, d]
    values: Tensor  # [s, d]
    owners: tuple[str, ...] = ()  # the requests of their training, each once

    @property
    def rows(self) -> int:
        """The number of slots."""
        return len(self.keys)

    @property
    def reach(self) -> Reach:
        """See `Patch.reach`."""
        return Reach(gates=frozenset({self.place} if len(self.keys) else ()))

    def as_neurons(self) -> NeuronPatch:
        """Return the neurons that do the same; nobody owns them."""
        bias = torch.zeros_like(self.keys[:, 0])
        return neurons_at(self.place, self.keys, bias, self.values)

    def beside(self) -> Mapping[str, tuple[str, ...]]:
        """See `Patch.beside`: all owners."""
        return dict.fromkeys(kinds_of(self.place, [""] * len(self.keys)), self.owners)

    def in_parameters(self, anatomy: Anatomy) -> Mapping[str, Factors | None]:
        """See `Patch.in_parameters`: none."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Return keys and values."""
        return {"keys": self.keys, "values": self.values}

    def meta(self) -> dict[str, Any]:
        """Return the place."""
        return {"place": self.place.to_json()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """See `Patch.from_tensors`."""
        try:
            place = GatePlace.from_json(meta["place"])
            return cls(place, tensors["keys"], tensors["values"])
        except KeyError as error:
            raise EditError(f"A slot patch has no {error}: its file is not one of ours.") from None

    def put_on(self, model: Mountable) -> Sequence[Tensor]:
        """See `Patch.put_on`."""
        return self.as_neurons().put_on(model)

    def norm(self) -> float:
        """Return the largest norm of a value."""
        return float(self.values.norm(dim=1).max()) if len(self.values) else 0.0

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Sequence[NeuronPatch]:
        """See `Patch.joined`: as neurons."""
        return [part.as_neurons() for part in parts]

    def without(self, request_id: str) -> SlotsPatch | None:
        """See `Patch.without`: whole or not at all. Raises SharedPatch if others own it too."""
        return None if goes_whole(self.owners, request_id, "the slots of its batch") else self

    def owned_by(self, owners: tuple[str, ...]) -> SlotsPatch:
        """See `Patch.owned_by`."""
        require_distinct(owners, "slot patch")
        return replace(self, owners=owners)

    def check(self) -> None:
        """See `Patch.check`."""
        if self.keys.ndim != 2 or self.values.shape != self.keys.shape:
            raise EditError(
                f"A slot patch does not fit together: keys {tuple(self.keys.shape)}, values "
                f"{tuple(self.values.shape)}."
            )
        self.as_neurons().check()
