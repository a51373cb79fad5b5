"""The settings of the fine-tuning baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.tables import SettingsTable


@dataclass(frozen=True)
class FineTuneConfig(SettingsTable):
    """The settings of all variants. Adam's other numbers are torch's own, without weight decay.

    The paper has a learning rate of 1e-5, for models of a hundred million parameters. The atlas has
    four million: there an edit takes 35 steps of 1e-4 in the last block and 12 of 3e-4, or 7 of
    1e-4 in all blocks, where 3e-4 destroys half of the model's knowledge in fifteen edits.
    """

    learning_rate: float = 1e-4  # Adam's learning rate
    steps_max: int = 100  # steps of the training of a batch, at most
    rephrases: bool = False  # learn from the rephrases too, as far as they may be learned from

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise self.refused("learning_rate is more than 0")
        if self.steps_max < 1:
            raise self.refused("steps_max is at least 1")


@dataclass(frozen=True)
class FineTuneKlConfig(FineTuneConfig):
    """Settings with KL(before ‖ now) on training probes and past edits; the paper's numbers."""

    kl_weight: float = 1.0  # the weight of the KL in the loss
    kl_memory: int = 512  # training probes in the KL, drawn once: the base's answers must stay
    kl_edits: int = 100
    """Past edits in the KL, at most, drawn for each edit: their answers must stay."""
    kl_batch: int = 32  # training probes, and past edits, in the KL of one step, at most

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_weight < 0 or self.kl_memory < 0 or self.kl_edits < 0:
            raise self.refused("kl_weight, kl_memory and kl_edits are not negative")
        if self.kl_batch < 1:
            raise self.refused("kl_batch is at least 1")


@dataclass(frozen=True)
class FtLastConfig(FineTuneConfig):
    """The settings of FT(last)."""

    table: ClassVar[str] = "editor.ft-last"

    learning_rate: float = 3e-4


@dataclass(frozen=True)
class FtAllConfig(FineTuneConfig):
    """The settings of FT(all)."""

    table: ClassVar[str] = "editor.ft-all"


@dataclass(frozen=True)
class FtLastKlConfig(FineTuneKlConfig):
    """The settings of FT(last)+KL."""

    table: ClassVar[str] = "editor.ft-last-kl"

    learning_rate: float = 3e-4


@dataclass(frozen=True)
class FtAllKlConfig(FineTuneKlConfig):
    """The settings of FT(all)+KL."""

    table: ClassVar[str] = "editor.ft-all-kl"


@dataclass(frozen=True)
class FtLConfig(FineTuneConfig):
    """The settings of FT-L: one FFN output matrix, each element held near its value before the
    edit.

    Published for models of a billion parameters: 5e-4, and a bound of one such step or less. With
    25 such steps one in fifteen edits of the atlas succeeds, and three in twenty within 0.01.
    """

    table: ClassVar[str] = "editor.ft-l"

    learning_rate: float = 2e-3
    steps_max: int = 25
    block: int | None = None  # the block whose matrix is trained; None: the last one
    norm_bound: float = 0.03  # ε of the constraint ‖W - W₀‖∞ ≤ ε

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm_bound <= 0:
            raise self.refused("norm_bound is more than 0")


PROJECTION, LAST_BLOCK = "projection", "block"


@dataclass(frozen=True)
class FtVisionConfig(FineTuneConfig):
    """The settings of FT(vision): of a part of the model in front of its text blocks."""

    table: ClassVar[str] = "editor.ft-vision"

    learning_rate: float = 1e-3
    part: str = PROJECTION
    """`projection`: the layers between pictures and text; `block`: the last block of the vision
    side that pictures' states depend on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part not in (PROJECTION, LAST_BLOCK):
            raise self.refused(f"part is {PROJECTION} or {LAST_BLOCK}")
