"""The settings that all editors by gradients share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from continual.tables import SettingsTable

ATTEMPT_GROWTH = 4.0
"""The growth of an update, or of the largest one of a search, from one attempt to the next."""
NARROWING = 0.7
"""The size of an update after one that changed too much, as a share of that one's."""


@dataclass(frozen=True)
class GradientConfig(SettingsTable):
    """The matrices that are edited, and the system that is solved for their updates."""

    blocks: tuple[int, ...] | None = None
    """The blocks whose FFN matrices are edited; None: by depth, see `default_blocks`."""
    sides: Literal["both", "up", "down"] = "both"
    """The edited matrices of a block: into its FFN, out of it, or both."""
    ridge: float = 1.0  # λ, the weight of ‖ΔW‖² in the system
    moment_weight: float = 0.0
    """μ, the weight of the key statistics C₀ in the system; only for sides = "down"."""
    memory: bool = False
    """Let the inputs of earlier edits weigh in the system, so that their outputs ask for no further
    change. Not in the published methods."""
    rephrases: bool = False  # learn from the rephrases too, as far as they may be learned from
    scale_max: int = 1
    """The largest multiple of a request's update, out of 1, 2, 4, …: it is doubled while the answer
    leads by less than `margin`. 1: no search, as published. On the atlas answers need 256 to 4,096
    times the published step, and ten such edits leave little of what the model knew."""
    margin: float = 0.5  # the lead of every token of the answer, in logits, that ends the search

    def __post_init__(self) -> None:
        self._require(self.ridge > 0, "ridge is more than 0")
        self._require(self.moment_weight >= 0, "moment_weight is not negative")
        is_down = self.sides == "down" or self.moment_weight == 0
        self._require(
            is_down, 'moment_weight needs sides = "down": statistics are of keys before that matrix'
        )
        is_power = self.scale_max >= 1 and self.scale_max & (self.scale_max - 1) == 0
        self._require(is_power, "scale_max is 1 or another power of two")
        self._require(self.margin >= 0, "margin is not negative")
        blocks = self.blocks
        ascending = blocks is None or (len(blocks) > 0 and list(blocks) == sorted(set(blocks)))
        self._require(ascending, "blocks are one or more, in ascending order")

    @classmethod
    def _require(cls, holds: bool, rule: str) -> None:
        if not holds:
            raise cls.refused(rule)


def default_blocks(count: int) -> tuple[int, ...]:
    """Return the blocks to edit of `count`: about a quarter, up to the last but one.

    For 32 blocks they are 23-30; published are 18-24 and 29-30 of 32, 18-26 of 28.
    """
    last_block = max(0, count - 2)
    size = max(1, count // 4)
    return tuple(range(max(0, last_block - size + 1), last_block + 1))
