"""Look-up patches: records of a look-up at one place (NeuralDB, ICLR 2026).

A row is a key, the value that is added where a query points its way, and the gate: the cosine above
which it opens. Rows know nothing of each other, so a request's rows go without a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor

from continual.effects import LOOKUP
from continual.effects.gated import Mount
from continual.effects.lookup import Lookup
from continual.effects.places import GatePlace
from continual.errors import EditError
from continual.patches.placed_rows import PlacedRowsPatch


class Consulted(Protocol):
    """The model that a look-up patch is put on."""

    def gated(self, name: str, place: GatePlace, make: Callable[[Mount], Lookup]) -> Lookup:
        """Return the look-up of this name at a place, made at the first call."""


@dataclass(frozen=True)
class LookupPatch(PlacedRowsPatch):
    """n rows for the look-up at one place; float32."""

    kind: ClassVar[str] = "lookup"
    name: ClassVar[str] = "look-up patch"
    beside_kind: ClassVar[str] = LOOKUP

    place: GatePlace
    keys: Tensor  # [n, d_k] the query that each row answers; of any length but zero
    values: Tensor  # [n, d] added to the output of the FFN
    gates: Tensor  # [n] γ: a row opens where the cosine is above it
    owners: tuple[str, ...] = ()  # [n] the request that each row is for, where it is known

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

    def check(self) -> None:
        """See `Patch.check`."""
        count = self.keys.shape[:1]
        is_matrix = self.keys.ndim == 2 and self.values.ndim == 2
        shapes = (self.values.shape[:1], self.gates.shape)
        self._require_fit(is_matrix and shapes == (count, count))
        if not bool((self.keys != 0).any(1).all()):
            raise EditError("A look-up patch has a key of zeros, which points nowhere.")
        if bool((self.gates.abs() > 1).any()):
            raise EditError("A look-up patch has a gate that is no cosine: it is from -1 to 1.")
