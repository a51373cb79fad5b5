"""The settings of AlphaEdit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from continual.locate_then_edit.config import LocateThenEditConfig

MOMENT_SHARE = 0.15
"""λ/d_ff of the weighted form. Three times MEMIT's: with C_p in the system, less room is left."""


@dataclass(frozen=True)
class AlphaEditConfig(LocateThenEditConfig):
    """Settings; see `LocateThenEditConfig` for those of the search."""

    table: ClassVar[str] = "editor.alphaedit"

    form: Literal["auto", "projected", "weighted"] = "auto"
    """The form of the update, which protects the knowledge behind C₀.

    "projected", as published: Δ lies in the null space of C₀, the directions that the statistics
    hardly have. "weighted": Δ = R·Kᵀ(λC₀ + K·Kᵀ + C_p)⁻¹, where each direction is held in
    proportion to its share of the statistics. The paper does not have this form: it is MEMIT's
    update with the keys of all earlier edits in its system. "auto": projected if at least
    `nullspace_least` of the squared length of the batch's keys lies in the null space, else
    weighted.

    A narrow model has no such space. On the atlas, d_ff 2,048, the directions below the published
    threshold hold 2 % of an edit's key. A value written there needs factors many times too large;
    with a larger space it is written in directions that other facts use. There 300 edits at once by
    "projected" took TestR to .85.
    """
    nullspace_least: float = 0.5
    """The share of the keys' squared length in the null space that "auto" asks for."""
    nullspace_threshold: float | None = None
    """Directions with eigenvalues of C₀ below it form the null space: 0.02 as published, for three
    large models. None: by share, as the length of keys differs from model to model."""
    nullspace_share: float = 0.1
    """The share of C₀'s trace that the null space may hold, without a threshold."""
    ridge: float = 1.0  # the ridge of the projected form; 10 as published
    moment_weight: float | None = None  # λ of the weighted form; None: `MOMENT_SHARE`·d_ff

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.ridge > 0, "ridge is more than 0")
        self._require(0 <= self.nullspace_share < 1, "nullspace_share is in [0, 1)")
        self._require(0 <= self.nullspace_least <= 1, "nullspace_least is in [0, 1]")
        weight = self.moment_weight
        self._require(weight is None or weight > 0, "moment_weight is more than 0")
