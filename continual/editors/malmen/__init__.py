"""MALMEN: a trained network's shifts, and one least-squares update for a batch (ICLR 2024)."""

from continual.editors.malmen.config import MalmenConfig
from continual.editors.malmen.editor import Malmen
from continual.editors.malmen.network import MalmenNetwork

__all__ = ["Malmen", "MalmenConfig", "MalmenNetwork"]
