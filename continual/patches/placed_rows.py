"""The shared part of patches of rows at one place: codebooks and look-ups.

A patch holds n rows, each with a key, a value and more numbers or words, and knows the request of
each row. Rows are taken out by leaving them away, and joined by one standing behind another: what
depends on other rows follows from all of them when they are put on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from continual.anatomy import Anatomy
from continual.effects import Reach
from continual.effects.places import GatePlace
from continual.errors import EditError
from continual.patches.low_rank import Factors
from continual.patches.owners import by_kind, others_places, require_owners

AnyPatch = TypeVar("AnyPatch", bound="PlacedRowsPatch")


class PlacedRowsPatch:
    """n rows at one place; float32. A dataclass beneath it has the fields."""

    name: ClassVar[str]  # in messages: "look-up patch"
    is_shared: ClassVar[bool] = False
    beside_kind: ClassVar[str]  # of its rows, in `effects.BESIDE`
    words: ClassVar[tuple[str, ...]] = ()  # the fields with n words, beside its n-row tensors

    if TYPE_CHECKING:

        @property
        def place(self) -> GatePlace:
            """The place of the rows."""

        @property
        def keys(self) -> Tensor:
            """[n, d_k]"""

        @property
        def values(self) -> Tensor:
            """[n, d]"""

        @property
        def owners(self) -> tuple[str, ...]:
            """[n] the request that each row is for, where it is known."""

        def tensors(self) -> dict[str, Tensor]:
            """Return the tensors of n rows by the names of their fields."""

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
        return by_kind([self.beside_kind] * len(self.keys), self.owners)

    def in_parameters(self, anatomy: Anatomy) -> Mapping[str, Factors | None]:
        """See `Patch.in_parameters`: none."""
        return {}

    def norm(self) -> float:
        """Return the largest norm of a value."""
        return float(self.values.norm(dim=1).max()) if len(self.values) else 0.0

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> list[Self]:
        """See `Patch.joined`."""
        places = dict.fromkeys(part.place for part in parts)
        return [cls._concatenated([part for part in parts if part.place == p]) for p in places]

    @classmethod
    def _concatenated(cls, parts: Sequence[Self]) -> Self:
        fields: dict[str, Any] = {
            name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()
        }
        for name in cls.words:
            fields[name] = tuple(word for part in parts for word in getattr(part, name))
        return _replaced(parts[0], owners=(), **fields)

    def without(self, request_id: str) -> Self | None:
        """See `Patch.without`."""
        places = others_places(self.owners, request_id)
        if len(places) == len(self.owners):
            return self
        return self._at(places) if places else None

    def _at(self, places: list[int]) -> Self:
        """Return the patch with the rows at these places alone."""
        fields: dict[str, Any] = {name: tensor[places] for name, tensor in self.tensors().items()}
        for name in (*self.words, "owners"):
            words = getattr(self, name)
            fields[name] = tuple(words[place] for place in places)
        return _replaced(self, **fields)

    def owned_by(self, owners: tuple[str, ...]) -> Self:
        """See `Patch.owned_by`."""
        require_owners(owners, len(self.keys), "rows")
        return _replaced(self, owners=owners)

    def _require_fit(self, is_fitting: bool) -> None:
        """Raise EditError unless the shapes fit and all numbers are finite float32."""
        if not is_fitting:
            shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in self.tensors().items())
            raise EditError(f"A {self.name} does not fit together: {shapes}.")
        for name, tensor in self.tensors().items():
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise EditError(f"The {name} of a {self.name} are not all finite float32.")


def _replaced(patch: AnyPatch, **fields: Any) -> AnyPatch:
    """Return the patch, a dataclass, with other fields."""
    changed: AnyPatch = replace(patch, **fields)  # type: ignore[type-var]
    return changed
