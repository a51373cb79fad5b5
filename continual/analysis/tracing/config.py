"""The settings of a trace."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from continual.analysis.tracing.modules import ATTENTION, FFN, MODULES, STATE

WITHOUT = {FFN: "state without ffn", ATTENTION: "state without attention"}
"""The severed kinds: a state is restored while one module's outputs at that token stay corrupted.
"""
KINDS = (STATE, *MODULES, *WITHOUT.values())
VERSION = 1
"""The version of the numbers: kept traces of another version are made anew."""


@dataclass(frozen=True)
class TracingConfig:
    """The settings of a trace; the defaults are those of Meng et al. 2022 (appendix B)."""

    noise: float = 3.0  # in standard deviations of the subjects' embeddings
    draws: int = 10  # of noise, over which scores are means
    seed: int = 1  # of the noise; the next one is the second seed
    window: int | None = None  # blocks around which FFN and attention are restored; None: by depth
    every: int = 1  # of so many blocks one is traced, the last for certain
    severed: bool = False  # also with FFN or attention held at their corrupted outputs
    total_effect_min: float = 0.05  # of a fact whose trace counts in an average

    def window_of(self, block_count: int) -> int:
        """Return the window of a model: as set, else a fifth of its blocks, ten at most (the
        published window was ten of 48)."""
        return self.window or min(10, max(1, round(block_count / 5)))

    def blocks_of(self, block_count: int) -> tuple[int, ...]:
        """Return the blocks of a model that are traced."""
        return tuple(range((block_count - 1) % self.every, block_count, self.every))

    def digest(self, *parts: Any) -> str:
        """Return a name for these settings with all else that a trace depends on."""
        text = json.dumps([VERSION, asdict(self), *parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def window_around(block: int, window: int, block_count: int) -> tuple[int, int]:
    """Return the blocks [first, stop) that are restored for a block: a window around it, cut off at
    the model's ends."""
    before = window // 2
    return max(0, block - before), min(block_count, block + window - before)


def windows_by_start(
    blocks: Sequence[int], window: int, block_count: int
) -> dict[int, Sequence[int]]:
    """Return the stops of the windows around some blocks by their first block: windows with one
    start share the blocks that both restore, and equal windows are one."""
    stops: dict[int, set[int]] = {}
    for block in blocks:
        first, stop = window_around(block, window, block_count)
        stops.setdefault(first, set()).add(stop)
    return {first: sorted(ends) for first, ends in sorted(stops.items())}
