"""The settings of GRACE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from continual.tables import SettingsTable


@dataclass(frozen=True)
class GraceConfig(SettingsTable):
    """Where the codebook stands, how wide an entry is, and how its value is trained.

    The paper's layer is three quarters of the way up GPT-2 XL (block 35 of 48), its ε is 1, Adam's
    rate 1, and an edit takes 50 to 200 steps. Lengths differ from model to model, so that here ε
    and the rate are shares of the model's own.
    """

    table: ClassVar[str] = "editor.grace"

    block: int | None = None
    """The block of the codebook; None: three quarters of the way up, never the last."""
    epsilon: float | None = None
    """The radius ε₀ of a new entry; None: by the model's own distances, see `scale`."""
    epsilon_share: float = 0.5
    """The radius ε₀, as a share of a small distance between keys with different answers."""
    replaced: Literal["answer", "key"] = "answer"
    """`answer`: an entry for each token of the answer, each replaces the output at its own token;
    `key`: one at the last token of the prompt, for the whole answer."""
    start: Literal["warm", "cold"] = "warm"
    """A value starts at the layer's own output, or uniform in [0, 1)."""
    rate: float = 0.2  # Adam's rate, as a share of the root mean square of the layer's own output
    steps_max: int = 100  # steps of the training of an edit's values, at most
    loss_max: float = 0.05
    """Mean loss of the answer's tokens at which training stops once they are right."""
    rephrases: bool = False  # give entries to the rephrases that may be learned from, too

    def __post_init__(self) -> None:
        if self.epsilon is not None and self.epsilon <= 0:
            raise self.refused("epsilon is more than 0")
        if self.epsilon_share <= 0 or self.rate <= 0 or self.loss_max <= 0:
            raise self.refused("epsilon_share, rate and loss_max are more than 0")
        if self.steps_max < 1:
            raise self.refused("steps_max is at least 1")
