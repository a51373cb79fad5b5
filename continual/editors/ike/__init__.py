"""IKE: edits in memory, read in the context of the frozen model (Zheng et al., EMNLP 2023)."""

from continual.editors.ike.config import IkeConfig
from continual.editors.ike.editor import Ike

__all__ = ["Ike", "IkeConfig"]
