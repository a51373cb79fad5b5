"""CaliNet: slots beside the last FFN, trained for a set of facts (Dong et al. 2022)."""

from continual.editors.calinet.config import CalinetConfig
from continual.editors.calinet.editor import Calinet

__all__ = ["Calinet", "CalinetConfig"]
