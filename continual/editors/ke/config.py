"""The settings of KnowledgeEditor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.gradients.config import FactoredConfig


@dataclass(frozen=True)
class KeConfig(FactoredConfig):
    """Settings; see `FactoredConfig` for the network, and `SystemConfig` for the system. KE as
    published has `solved = false` and `scale_max = 1`."""

    table: ClassVar[str] = "editor.ke"
