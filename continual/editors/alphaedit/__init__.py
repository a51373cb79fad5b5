"""AlphaEdit: updates in the null space of preserved knowledge (Fang et al., ICLR 2025)."""

from continual.editors.alphaedit.config import AlphaEditConfig
from continual.editors.alphaedit.editor import AlphaEdit

__all__ = ["AlphaEdit", "AlphaEditConfig"]
