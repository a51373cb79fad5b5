"""The settings of the fine-tuning baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.tables import Table


@dataclass(frozen=True)
class FineTuneConfig(Table):
    """What all of them have. Adam's other numbers are torch's own, without weight decay.

    The paper has a learning rate of 1e-5, for models of a hundred million parameters. The atlas has
    four million: there an edit takes 35 steps of 1e-4 in the last block and 12 of 3e-4, or 7 of
    1e-4 in all blocks, where 3e-4 takes half of what the model knows in fifteen edits.
    """

    learning_rate: float = 1e-4
    steps_max: int = 100
    rephrases: bool = False  # whether the rephrases that may be learned from join the prompt

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise self.refused("learning_rate is more than 0")
        if self.steps_max < 1:
            raise self.refused("steps_max is at least 1")


@dataclass(frozen=True)
class FineTuneKlConfig(FineTuneConfig):
    """With KL(before ‖ now) on training probes and past edits; the numbers are the paper's."""

    kl_weight: float = 1.0  # of the KL beside the loss
    kl_memory: int = 512  # training probes, drawn once: the base's answers
    kl_edits: int = 100  # past edits at most, drawn for each edit: the answers just before it
    kl_batch: int = 32  # of each of the two, at most, in one step

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_weight < 0 or self.kl_memory < 0 or self.kl_edits < 0:
            raise self.refused("kl_weight, kl_memory and kl_edits are not negative")
        if self.kl_batch < 1:
            raise self.refused("kl_batch is at least 1")


@dataclass(frozen=True)
class FtLastConfig(FineTuneConfig):
    """Of FT(last)."""

    table: ClassVar[str] = "editor.ft-last"

    learning_rate: float = 3e-4


@dataclass(frozen=True)
class FtAllConfig(FineTuneConfig):
    """Of FT(all)."""

    table: ClassVar[str] = "editor.ft-all"


@dataclass(frozen=True)
class FtLastKlConfig(FineTuneKlConfig):
    """Of FT(last)+KL."""

    table: ClassVar[str] = "editor.ft-last-kl"

    learning_rate: float = 3e-4


@dataclass(frozen=True)
class FtAllKlConfig(FineTuneKlConfig):
    """Of FT(all)+KL."""

    table: ClassVar[str] = "editor.ft-all-kl"


@dataclass(frozen=True)
class FtLConfig(FineTuneConfig):
    """Of FT-L: one FFN output matrix, each element held near where the edit has found it.

    Published for models of a billion parameters: 5e-4, and a bound of one such step or less. In 25
    steps of that one in fifteen edits of the atlas gets there, and within 0.01 three in twenty.
    """

    table: ClassVar[str] = "editor.ft-l"

    learning_rate: float = 2e-3
    steps_max: int = 25
    block: int | None = None  # None: the last one
    norm_bound: float = 0.03  # ε of the constraint ‖W - W₀‖∞ ≤ ε

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm_bound <= 0:
            raise self.refused("norm_bound is more than 0")
