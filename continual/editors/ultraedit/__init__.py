"""UltraEdit: normalised gradients as wanted shifts, without any training (TMLR 2026)."""

from continual.editors.ultraedit.config import UltraEditConfig
from continual.editors.ultraedit.editor import UltraEdit

__all__ = ["UltraEdit", "UltraEditConfig"]
