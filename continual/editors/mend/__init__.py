"""MEND: a trained network turns the gradient of one edit into its update (Mitchell et al. 2022)."""

from continual.editors.mend.config import MendConfig
from continual.editors.mend.editor import Mend
from continual.editors.mend.network import MendNetwork

__all__ = ["Mend", "MendConfig", "MendNetwork"]
