"""The settings of AlphaEdit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.associative.config import AssociativeConfig


@dataclass(frozen=True)
class AlphaEditConfig(AssociativeConfig):
    """Settings; see `AssociativeConfig` for those of the search."""

    table: ClassVar[str] = "editor.alphaedit"

    nullspace_threshold: float | None = None
    """Eigenvalues of C₀ below it are the null space: 0.02 as published, for three large models.
    None: by share. How long keys are differs from model to model."""
    nullspace_share: float = 0.1  # the share of C₀'s trace that is given up to edits
    ridge: float = 1.0  # 10 as published
    drift_max: float = 1.5  # less of it is harmless in the null space than elsewhere

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.ridge > 0, "ridge is more than 0")
        self._require(0 <= self.nullspace_share < 1, "nullspace_share is in [0, 1)")
