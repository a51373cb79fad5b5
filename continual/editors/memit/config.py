"""The settings of MEMIT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.locate_then_edit.config import LocateThenEditConfig

MOMENT_SHARE = 0.05


@dataclass(frozen=True)
class MemitConfig(LocateThenEditConfig):
    """Settings; see `LocateThenEditConfig` for those of the search."""

    table: ClassVar[str] = "editor.memit"

    moment_weight: float | None = None
    """λ: the weight of the statistics against a request. None: `MOMENT_SHARE`·d_ff.

    The share s / (λ + s) of a value is written, with s = kᵀC₀⁻¹k, which is d_ff on average over the
    keys of the statistics. Published, for five or six blocks: 15,000 (GPT-J), 20,000 (GPT-2 XL).
    """

    past: bool = False
    """Hold the keys of earlier edits in the update, as `alphaedit` does: C_p joins λC₀, so that
    earlier values are written over less."""

    def __post_init__(self) -> None:
        super().__post_init__()
        weight = self.moment_weight
        self._require(weight is None or weight > 0, "moment_weight is more than 0")
