"""The settings of SERAC. The scope and the counterfactual model are the store's: `[memory]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from continual.errors import CeditError
from continual.memory.contexts import FORM, require_form


@dataclass(frozen=True)
class SeracConfig:
    """Settings."""

    form: str = FORM  # how the counterfactual model is told the edit, and asked

    def __post_init__(self) -> None:
        require_form(self.form, "editor.serac")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """From an `[editor.serac]` table. Raises CeditError for a key that it does not have."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(settings) - known):
            raise CeditError(
                f"[editor.serac] has no setting {', '.join(unknown)}: it has "
                f"{', '.join(sorted(known))}."
            )
        return cls(**settings)
