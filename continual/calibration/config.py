"""The settings of calibration: the store's `[calibration]` table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from continual.tables import Table

NEW_STORES: dict[str, Any] = {"at_first_use": True}
"""The table of a new store. One without it was made before, or on a model whose settings come with
the package: its editors have the defaults and what `[editor.NAME]` says."""


@dataclass(frozen=True)
class CalibrationConfig(Table):
    """How much is measured, and when."""

    table: ClassVar[str] = "calibration"

    at_first_use: bool = False  # of an editor on this base model, before it edits
    facts: int = 16  # that are tried to be written
    stays_min: float = 0.96
    """The share of general text, and of other facts, that the whole budget of an editor may leave
    as it is at the least; see `grids.Budget`."""

    def __post_init__(self) -> None:
        if self.facts < 4:
            raise self.refused(f"facts = {self.facts} is too few to choose by: give at least 4")
        if not 0.0 < self.stays_min <= 1.0:
            raise self.refused(f"stays_min = {self.stays_min} is no share above 0, up to 1")
