"""Calibration: an editor's settings for one base model, by measuring.

For a sample of facts the settings that an editor offers are tried on the model, axis after axis;
what arrives, generalises and stays chooses. Knows no editor by name.
"""

from continual.calibration.calibrating import Calibration
from continual.calibration.config import CalibrationConfig
from continual.calibration.kept import Calibrated, Kept
from continual.calibration.trials import Evidence

__all__ = ["Calibrated", "Calibration", "CalibrationConfig", "Evidence", "Kept"]
