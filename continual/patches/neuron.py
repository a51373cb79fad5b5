"""Neuron patches: extra key-value pairs beside the FFN of one block (Huang et al. 2023, eq. 3-4).

    FFN_p(q) = FFN(q) + relu(q·K + b)·V

A step adds a `NeuronPatch` there, or a `GatePatch` at any other place; `effects.gated` runs the
model with all neurons of a place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor

from continual.anatomy import Anatomy
from continual.effects import Reach
from continual.effects.gated import Firing, NeuronBank, firing_of, kinds_of, where_named
from continual.effects.places import FFN, NO_BLOCK, GatePlace
from continual.errors import EditError
from continual.patches.low_rank import Factors
from continual.patches.owners import by_kind, others_places, require_owners
from continual.reading import RowTexts

NeuronPatchKind = TypeVar("NeuronPatchKind", bound="NeuronPatch")


class Mountable(Protocol):
    """The model that a neuron patch is put on."""

    def gates(self, place: GatePlace) -> NeuronBank:
        """Return the neurons at a place."""


@dataclass(frozen=True)
class NeuronPatch:
    """n neurons at the FFN of one block; float32."""

    kind: ClassVar[str] = "neuron"
    is_shared: ClassVar[bool] = False

    block: int
    keys: Tensor  # [n, d]
    bias: Tensor  # [n]
    values: Tensor  # [n, d]
    owners: tuple[str, ...] = ()  # [n] the request of each neuron, if known
    subjects: tuple[
        str, ...
    ] = ()  # [n] normalised; where one is not empty, the text has to name it

    @property
    def place(self) -> GatePlace:
        """The place of its neurons."""
        return GatePlace.at(self.block)

    @property
    def rows(self) -> int:
        """The number of neurons."""
        return len(self.keys)

    @property
    def reach(self) -> Reach:
        """See `Patch.reach`."""
        return Reach(gates=frozenset({self.place} if len(self.keys) else ()))

    def beside(self) -> Mapping[str, tuple[str, ...]]:
        """See `Patch.beside`: all of its neurons."""
        subjects = self.subjects or ("",) * len(self.keys)
        return by_kind(kinds_of(self.place, subjects), self.owners)

    def in_parameters(self, anatomy: Anatomy) -> Mapping[str, Factors | None]:
        """See `Patch.in_parameters`: none."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Return keys, bias and values."""
        return {"keys": self.keys, "bias": self.bias, "values": self.values}

    def meta(self) -> dict[str, Any]:
        """Return the block, and the subjects of neurons that ask for one."""
        return {"block": self.block, **({"subjects": self.subjects} if any(self.subjects) else {})}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """See `Patch.from_tensors`."""
        try:
            return cls(
                int(meta["block"]),
                tensors["keys"],
                tensors["bias"],
                tensors["values"],
                subjects=tuple(meta.get("subjects", ())),
            )
        except KeyError as error:
            raise EditError(
                f"A neuron patch has no {error}: its file is not one of ours."
            ) from None

    def put_on(self, model: Mountable) -> Sequence[Tensor]:
        """See `Patch.put_on`."""
        return model.gates(self.place).extend(self)

    def norm(self) -> float:
        """Return the largest norm of a value."""
        return float(self.values.norm(dim=1).max()) if len(self.values) else 0.0

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> list[NeuronPatch]:
        """See `Patch.joined`."""
        places = dict.fromkeys(part.place for part in parts)
        return [_concatenated([part for part in parts if part.place == p]) for p in places]

    def firing(self, queries: Tensor, texts: RowTexts | None = None) -> Firing:
        """Find its neurons that fire on one of the queries [r, d], which stand behind `texts`;
        places count from the patch's first neuron."""
        places = torch.arange(len(self.keys), device=queries.device)
        firing = firing_of(queries.to(self.keys.dtype), places, self.keys, self.bias)
        return where_named(firing, self.subjects, texts)

    def without(self, request_id: str) -> NeuronPatch | None:
        """See `Patch.without`."""
        places = others_places(self.owners, request_id)
        if len(places) == len(self.owners):
            return self
        if not places:
            return None
        return replace(
            self,
            keys=self.keys[places],
            bias=self.bias[places],
            values=self.values[places],
            owners=tuple(self.owners[place] for place in places),
            subjects=tuple(self.subjects[place] for place in places) if self.subjects else (),
        )

    def owned_by(self, owners: tuple[str, ...]) -> NeuronPatch:
        """See `Patch.owned_by`."""
        require_owners(owners, len(self.keys), "neurons")
        return replace(self, owners=owners)

    def check(self) -> None:
        """See `Patch.check`."""
        count = self.keys.shape[:1]
        if self.keys.ndim != 2 or self.bias.shape != count or self.values.shape != self.keys.shape:
            raise EditError(
                f"A neuron patch does not fit together: keys {tuple(self.keys.shape)}, bias "
                f"{tuple(self.bias.shape)}, values {tuple(self.values.shape)}."
            )
        if self.subjects and len(self.subjects) != len(self.keys):
            raise EditError(
                f"A neuron patch has {len(self.subjects)} subjects for {len(self.keys)} neurons: "
                "its file is not one of ours."
            )
        for name, tensor in self.tensors().items():
            if tensor.dtype != torch.float32 or not _is_finite(tensor):
                raise EditError(f"The {name} of a neuron patch are not all finite float32 numbers.")


@dataclass(frozen=True)
class GatePatch(NeuronPatch):
    """n neurons at any place other than one block's FFN; float32.

    A separate kind, so that versions that know only neurons at an FFN refuse it by name.
    """

    kind: ClassVar[str] = "gate"

    key: str = field(default=FFN, kw_only=True)
    value_block: int = field(kw_only=True)
    value: str = field(kw_only=True)
    context: int = field(default=NO_BLOCK, kw_only=True)  # see `GatePlace`

    @property
    def place(self) -> GatePlace:
        """The place of its neurons."""
        return GatePlace.at(self.block, self.key, self.value_block, self.value, self.context)

    def meta(self) -> dict[str, Any]:
        """Return the place, and the subjects of neurons that ask for one."""
        return {**super().meta(), **self.place.to_json()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """See `Patch.from_tensors`."""
        try:
            place = GatePlace.from_json(meta)
            neurons = (tensors["keys"], tensors["bias"], tensors["values"])
        except KeyError as error:
            raise EditError(f"A gate patch has no {error}: its file is not one of ours.") from None
        return cls(
            place.block,
            *neurons,
            subjects=tuple(meta.get("subjects", ())),
            key=place.key,
            value_block=place.value_block,
            value=place.value,
            context=place.context,
        )


def neurons_at(
    place: GatePlace, keys: Tensor, bias: Tensor, values: Tensor, owners: tuple[str, ...] = ()
) -> NeuronPatch:
    """Make a patch of neurons (keys [n, d], bias [n], values [n, d]) at a place, of the place's
    kind."""
    if place.is_local:
        return NeuronPatch(place.block, keys, bias, values, owners)
    return GatePatch(
        place.block,
        keys,
        bias,
        values,
        owners,
        key=place.key,
        value_block=place.value_block,
        value=place.value,
        context=place.context,
    )


def _is_finite(tensor: Tensor) -> bool:
    """Tell whether all numbers are finite: the largest is, and NaN counts as larger."""
    return not tensor.numel() or math.isfinite(torch.linalg.vector_norm(tensor, math.inf))


def _concatenated(parts: Sequence[NeuronPatchKind]) -> NeuronPatchKind:
    subjects = tuple(s for part in parts for s in part.subjects or ("",) * len(part.keys))
    return replace(
        parts[0],
        keys=torch.cat([part.keys for part in parts]),
        bias=torch.cat([part.bias for part in parts]),
        values=torch.cat([part.values for part in parts]),
        owners=(),
        subjects=subjects if any(subjects) else (),
    )
