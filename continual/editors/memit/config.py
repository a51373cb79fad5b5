"""The settings of MEMIT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.editors.associative.config import AssociativeConfig


@dataclass(frozen=True)
class MemitConfig(AssociativeConfig):
    """Settings; see `AssociativeConfig` for those of the search."""

    table: ClassVar[str] = "memit"

    moment_weight: float = 15_000.0  # λ: how much the statistics weigh against a request

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.moment_weight > 0, "moment_weight is more than 0")
