"""The settings of CaliNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.tables import SettingsTable


@dataclass(frozen=True)
class CalinetConfig(SettingsTable):
    """The settings of CaliNet, for about a hundred facts in a batch.

    As published: `silent_weight = 0.0`, Adafactor in the place of Adam, up to 5,000 steps.
    """

    table: ClassVar[str] = "editor.calinet"

    slots: int = 64  # s, the slots of a batch; 256 as published for a thousand facts
    learning_rate: float = 1e-2
    """Adam's learning rate, for keys in units of 1/‖q‖ and values in units of ‖h‖/√d."""
    steps_max: int = 300  # steps of the training of a batch, at most
    confidence: float = 0.1  # the loss of every row at which the training is done
    rephrases: bool = True  # learn from the rephrases too, as far as they may be learned from
    silent_weight: float = 10.0
    """The weight of ‖shift‖²/‖h‖² on the memory: training probes, general text, past edits,
    neighbours; 0 as published."""
    silent_rows: int = 1024  # queries in memory that a step draws, and as many of past edits

    def __post_init__(self) -> None:
        for name in ("slots", "steps_max", "silent_rows"):
            if getattr(self, name) < 1:
                raise self.refused(f"{name} is at least 1")
        if self.learning_rate <= 0 or self.confidence <= 0:
            raise self.refused("learning_rate and confidence are more than 0")
        if self.silent_weight < 0:
            raise self.refused("silent_weight is not negative")
