"""KnowledgeEditor: a network that reads the edit gates its gradient (De Cao et al. 2021)."""

from continual.editors.ke.config import KeConfig
from continual.editors.ke.editor import Ke
from continual.editors.ke.network import KeNetwork

__all__ = ["Ke", "KeConfig", "KeNetwork"]
