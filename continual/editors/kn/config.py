"""The settings of the editor of knowledge neurons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from continual.tables import SettingsTable


@dataclass(frozen=True)
class KnConfig(SettingsTable):
    """Settings: the choice of the neurons to rewrite, and the size of the change."""

    table: ClassVar[str] = "editor.kn"

    steps: int = 20  # of the integral of an attribution
    of_max: float = 0.2
    """The share of a prompt's highest attribution that its neurons have at least."""
    share: float = 0.7
    """The share of the prompt and its rephrases that a neuron is in, where they are three or
    more; of fewer it is in all."""
    neurons_max: int = 5  # for each wrong token: the ones with the highest attribution
    old_weight: float = 1.0
    """λ1: the old token's word embedding that is taken from a value, in lengths of the value."""
    new_weight: float = 8.0
    """λ2: the new token's word embedding that is added to it."""
    embedding: Literal["input", "output"] = "input"
    """The table of word embeddings: of the model's input, as published, or of its output; most
    models have one for both."""

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000:
            raise self.refused("steps is a number from 1 to 1000")
        if not (0 < self.of_max <= 1 and 0 < self.share <= 1):
            raise self.refused("of_max and share are more than 0, and at most 1")
        if self.neurons_max < 1:
            raise self.refused("neurons_max is at least 1")
        if self.old_weight < 0 or self.new_weight <= 0:
            raise self.refused("old_weight is at least 0, new_weight more")
