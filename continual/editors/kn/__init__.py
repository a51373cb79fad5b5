"""KN: rewrites the values of the neurons that the present answer is owed to (Dai et al. 2022)."""

from continual.editors.kn.config import KnConfig
from continual.editors.kn.editor import Kn

__all__ = ["Kn", "KnConfig"]
