"""MEMIT: many facts at once, written into a few blocks (Meng et al., ICLR 2023)."""

from continual.editors.memit.config import MemitConfig
from continual.editors.memit.editor import Memit

__all__ = ["Memit", "MemitConfig"]
