"""Calibration: chooses an editor's settings for one base model by measuring them.

Tries the settings that an editor offers on a sample of facts, axis after axis, and chooses by the
shares of facts that arrive, generalise and leave the rest alone. Knows no editor by name.
"""

from continual.calibration.calibrating import Calibration
from continual.calibration.config import CalibrationConfig
from continual.calibration.kept import Calibrated, CalibrationCache
from continual.calibration.trials import Evidence

__all__ = ["Calibrated", "Calibration", "CalibrationCache", "CalibrationConfig", "Evidence"]
