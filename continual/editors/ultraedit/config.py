"""The settings of UltraEdit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.gradients.config import GradientConfig

RATE_BY_WIDTH = 4e-3
"""η times the width of a matrix's inputs: of the published 1e-6 at a width of 4,096."""


@dataclass(frozen=True)
class UltraEditConfig(GradientConfig):
    """Settings; see `GradientConfig` for those of the matrices and the system."""

    table: ClassVar[str] = "editor.ultraedit"

    rate: float | None = None
    """η, the size of a shift; None: `RATE_BY_WIDTH` over the width of the matrix's inputs, as
    ‖ĥ‖² grows with it. 1e-6 as published, for models of a width of 4,096."""
    warmup: int = 64
    """Training probes with each other's answers that the normaliser begins with; 0 as published:
    then the first edits of a history, one by one, do nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.rate is None or self.rate >= 0, "rate is not negative")
        self._require(0 <= self.warmup <= 100_000, "warmup is a number from 0 to 100,000")
