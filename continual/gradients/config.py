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
class SystemConfig(SettingsTable):
    """The system that is solved for the updates of matrices, and their size."""

    ridge: float = 1.0  # λ, the weight of ‖ΔW‖² in the system
    moment_weight: float = 1000.0
    """μ, the weight of C₀, the second moment of the matrix's inputs on the base: over general text
    in memory and at most 512 training probes. 0 as published."""
    memory: bool = True
    """Let the inputs of earlier edits weigh in the system, so that their outputs ask for no further
    change. False as published."""
    rephrases: bool = False  # learn from the rephrases too, as far as they may be learned from
    scale_max: int = 2**20
    """The largest multiple of a request's update, out of 1, 2, 4, …: it is doubled while the answer
    leads by less than `margin`. 1: no search, as published."""
    margin: float = 0.5  # the lead of every token of the answer, in logits, that ends the search

    def __post_init__(self) -> None:
        self._require(self.ridge > 0, "ridge is more than 0")
        self._require(self.moment_weight >= 0, "moment_weight is not negative")
        is_power = self.scale_max >= 1 and self.scale_max & (self.scale_max - 1) == 0
        self._require(is_power, "scale_max is 1 or another power of two")
        self._require(self.margin >= 0, "margin is not negative")

    @classmethod
    def _require(cls, holds: bool, rule: str) -> None:
        if not holds:
            raise cls.refused(rule)


@dataclass(frozen=True)
class GradientConfig(SystemConfig):
    """The matrices that are edited, and the system that is solved for their updates."""

    blocks: tuple[int, ...] | None = None
    """The blocks whose FFN matrices are edited; None: the last one. Nothing that is edited stands
    in front of it, so that the inputs of earlier edits stay as they were."""
    sides: Literal["both", "up", "down"] = "down"
    """The edited matrices of a block: into its FFN, out of it, or both."""

    def __post_init__(self) -> None:
        super().__post_init__()
        blocks = self.blocks
        ascending = blocks is None or (len(blocks) > 0 and list(blocks) == sorted(set(blocks)))
        self._require(ascending, "blocks are one or more, in ascending order")

    def blocks_of(self, count: int) -> tuple[int, ...]:
        """Return the blocks to edit of `count`."""
        return self.blocks or (count - 1,)


@dataclass(frozen=True)
class TrainedConfig(SystemConfig):
    """A trained network, which edits the matrices that it was trained on, and the system."""

    network: str = ""  # the file of the network, as `cedit train` leaves it
    network_digest: str = ""  # SHA-256 of that file: it stands in every revision


@dataclass(frozen=True)
class FactoredConfig(TrainedConfig):
    """A trained network that gives an update for each edit."""

    solved: bool = True
    """Solve the system for an update that gives the tokens of an edit the outputs that the
    network's own would give them, with regard to earlier edits. False as published: the network's
    update is added as it is."""
