"""The settings of ROME."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.locate_then_edit.config import LocateThenEditConfig


@dataclass(frozen=True)
class RomeConfig(LocateThenEditConfig):
    """Settings; see `LocateThenEditConfig` for those of the search."""

    table: ClassVar[str] = "editor.rome"

    averaged: bool = True
    """Use the key averaged over contexts on both sides of the update (R-ROME, Gupta et al. 2024).
    False is the published code, with the bare prompt's key on one side: its updates can blow up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_single = self.blocks is None or len(self.blocks) == 1
        self._require(is_single, "blocks is a single one, or left out")
        self._require(self.place != "answer", "place is auto, subject or end: ROME has one key")
