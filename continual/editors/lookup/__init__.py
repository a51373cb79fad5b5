"""Look-up (NeuralDB, ICLR 2026): each edit is a record, and adds its value where a key matches."""

from continual.editors.lookup.config import LookupConfig
from continual.editors.lookup.editor import LookupEditor

__all__ = ["LookupConfig", "LookupEditor"]
