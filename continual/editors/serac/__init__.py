"""SERAC: edits in memory, a scope, and a counterfactual model (Mitchell et al., ICML 2022)."""

from continual.editors.serac.config import SeracConfig
from continual.editors.serac.editor import Serac

__all__ = ["Serac", "SeracConfig"]
