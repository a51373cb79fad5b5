"""T-Patcher: one neuron per mistake (Huang et al., ICLR 2023), trained on cached rows."""

from continual.editors.tpatcher.config import TPatcherConfig
from continual.editors.tpatcher.editor import TPatcher

__all__ = ["TPatcher", "TPatcherConfig"]
