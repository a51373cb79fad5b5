"""The settings of EMMET."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.locate_then_edit.config import LocateThenEditConfig


@dataclass(frozen=True)
class EmmetConfig(LocateThenEditConfig):
    """Settings; see `LocateThenEditConfig` for those of the search."""

    table: ClassVar[str] = "editor.emmet"

    ridge: float = 0.1
    """The ridge on K·C₀⁻¹·Kᵀ; 0 writes every value exactly, if keys are independent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.ridge >= 0, "ridge is not negative")
