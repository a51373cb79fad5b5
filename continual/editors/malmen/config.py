"""The settings of MALMEN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.gradients.config import TrainedConfig


@dataclass(frozen=True)
class MalmenConfig(TrainedConfig):
    """Settings; see `TrainedConfig` for the network, and `SystemConfig` for the system.
    MALMEN as published has `moment_weight = 0`, `memory = false` and `scale_max = 1`."""

    table: ClassVar[str] = "editor.malmen"

    trained_ridge: bool = True  # λ of each matrix as trained; False: `ridge`
