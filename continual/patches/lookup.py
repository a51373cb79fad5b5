"""Look-up patches: records of a look-up at one place (NeuralDB, ICLR 2026).

A row is a key, the value that is added where a query points its way, and the gate: the cosine above
which it opens. Rows know nothing of each other, so a request's rows go without a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from continual.anatomy import Anatomy
from continual.effects import LOOKUP, Reach
from continual.effects.gated import Mount
from continual.effects.lookup import Lookup
from continual.effects.places import GatePlace
from continual.errors import EditError
from continual.patches.low_rank import Factors
from continual.patches.owners import by_kind, others_places, require_owners


class Consulted(Protocol):
    """The model that a look-up patch is put on."""

    def gated(self, name: str, place: GatePlace, make: Callable[[Mount], Lookup]) -> Lookup:
        """Return the look-up of this name at a place, made at the first call."""


@dataclass(frozen=True)
class LookupPatch:
    """n rows for the look-up at one place; float32."""

    kind: ClassVar[str] = "lookup"

    place: GatePlace
    keys: Tensor  # [n, d_k] the query that each row answers; of any length but zero
    values: Tensor  # [n, d] added to the output of the FFN
    gates: Tensor  # [n] γ: a row opens where the cosine is above it
    owners: tuple[str, ...] = ()  # [n] the request that each row is for, where it is known

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
        return by_kind([LOOKUP] * len(self.keys), self.owners)

    def in_parameters(self, anatomy: Anatomy) -> Mapping[str, Factors | None]:
        """See `Patch.in_parameters`: none."""
        return {}

    @classmethod
    def of_model(cls, model: Consulted, place: GatePlace) -> Lookup:
        """Return the look-up at a place of a model. Raises ModelError if it has no such place."""
        return model.gated(f"look-up from {place}", place, Lookup)

    def tensors(self) -> dict[str, Tensor]:
        """Return keys, values and gates."""
        return {"keys": self.keys, "values": self.values, "gates": self.gates}

    def meta(self) -> dict[str, Any]:
        """Return the place."""
        return {"place": self.place.to_json()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """See `Patch.from_tensors`."""
        try:
            place = GatePlace.from_json(meta["place"])
            return cls(place, tensors["keys"], tensors["values"], tensors["gates"])
        except KeyError as error:
            raise EditError(
                f"A look-up patch has no {error}: its file is not one of ours."
            ) from None

    def put_on(self, model: Consulted) -> Sequence[Tensor]:
        """See `Patch.put_on`."""
        return self.of_model(model, self.place).extend(self)

    def norm(self) -> float:
        """Return the largest norm of a value."""
        return float(self.values.norm(dim=1).max()) if len(self.values) else 0.0

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> list[LookupPatch]:
        """See `Patch.joined`."""
        places = dict.fromkeys(part.place for part in parts)
        return [_concatenated([part for part in parts if part.place == p]) for p in places]

    def without(self, request_id: str) -> LookupPatch | None:
        """See `Patch.without`."""
        places = others_places(self.owners, request_id)
        if len(places) == len(self.owners):
            return self
        if not places:
            return None
        return replace(
            self,
            keys=self.keys[places],
            values=self.values[places],
            gates=self.gates[places],
            owners=tuple(self.owners[place] for place in places),
        )

    def owned_by(self, owners: tuple[str, ...]) -> LookupPatch:
        """See `Patch.owned_by`."""
        require_owners(owners, len(self.keys), "rows")
        return replace(self, owners=owners)

    def check(self) -> None:
        """See `Patch.check`."""
        count = self.keys.shape[:1]
        is_matrix = self.keys.ndim == 2 and self.values.ndim == 2
        if not is_matrix or self.values.shape[:1] != count or self.gates.shape != count:
            shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in self.tensors().items())
            raise EditError(f"A look-up patch does not fit together: {shapes}.")
        for name, tensor in self.tensors().items():
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise EditError(f"The {name} of a look-up patch are not all finite float32.")
        if not bool((self.keys != 0).any(1).all()):
            raise EditError("A look-up patch has a key of zeros, which points nowhere.")
        if bool((self.gates.abs() > 1).any()):
            raise EditError("A look-up patch has a gate that is no cosine: it is from -1 to 1.")


def _concatenated(parts: Sequence[LookupPatch]) -> LookupPatch:
    return replace(
        parts[0],
        keys=torch.cat([part.keys for part in parts]),
        values=torch.cat([part.values for part in parts]),
        gates=torch.cat([part.gates for part in parts]),
        owners=(),
    )
