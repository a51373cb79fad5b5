"""The settings of SERAC. The scope and the counterfactual model are the store's: `[memory]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.memory.contexts import FORM, require_form
from continual.tables import SettingsTable


@dataclass(frozen=True)
class SeracConfig(SettingsTable):
    """Settings."""

    table: ClassVar[str] = "editor.serac"

    form: str = FORM  # the form in which the counterfactual model reads the edit and the question

    def __post_init__(self) -> None:
        require_form(self.form, self.table)
