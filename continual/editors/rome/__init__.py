"""ROME: one fact after another, each a rank-one update (Meng et al., NeurIPS 2022)."""

from continual.editors.rome.config import RomeConfig
from continual.editors.rome.editor import Rome

__all__ = ["Rome", "RomeConfig"]
