"""EMMET: a batch of facts as equality constraints (Gupta et al., EMNLP Findings 2024)."""

from continual.editors.emmet.config import EmmetConfig
from continual.editors.emmet.editor import Emmet

__all__ = ["Emmet", "EmmetConfig"]
