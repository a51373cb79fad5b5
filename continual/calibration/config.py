"""The settings of calibration: the store's `[calibration]` table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from continual.tables import SettingsTable

NEW_STORES: dict[str, Any] = {"at_first_use": True}
"""The table of a new store. A store without the table is older, or has a model whose settings come
with the package: its editors use the defaults and the lines of `[editor.NAME]`."""


@dataclass(frozen=True)
class CalibrationConfig(SettingsTable):
    """The settings of calibration: the number of facts, the bound of losses, and when it runs."""

    table: ClassVar[str] = "calibration"

    at_first_use: bool = False  # calibrate an editor before its first edit on this base model
    facts: int = 16  # facts that are written in each trial
    stays_min: float = 0.96
    """The least share of general text, and of other facts, that has to stay as it is when an editor
    has spent its whole budget; see `grids.Budget`."""

    def __post_init__(self) -> None:
        if self.facts < 4:
            raise self.refused(f"facts = {self.facts} is too few to choose by: give at least 4")
        if not 0.0 < self.stays_min <= 1.0:
            raise self.refused(f"stays_min = {self.stays_min} is no share above 0, up to 1")
