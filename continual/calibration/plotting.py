"""Plots the evidence of calibrations: the shares that each trial measured, and its score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from continual.calibration.choosing import score
from continual.calibration.kept import Calibrated
from continual.errors import CeditError
from continual.grids import MEASURED

WIDTH, ROW_HEIGHT = 9.0, 0.24  # inches
MARKS = "osD^v"


def draw(calibrations: Sequence[Calibrated], path: Path) -> None:
    """Draw one panel for each editor to a file whose ending names its format. Raises CeditError
    without matplotlib, or for a file that cannot be written."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CeditError(
            "A plot needs matplotlib, which is not installed: pip install 'cedit[plots]'."
        ) from error
    rows = [max(1, len(calibrated.trials)) for calibrated in calibrations]
    figure = Figure(figsize=(WIDTH, 1.2 * len(rows) + ROW_HEIGHT * sum(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)
    for panel, calibrated in zip(panels[:, 0], calibrations, strict=True):
        _draw(panel, calibrated)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise CeditError(f"The plot cannot be written to {path}: {error}") from error


def _draw(panel: Any, calibrated: Calibrated) -> None:
    trials = calibrated.trials
    places = range(len(trials))
    for name, mark in zip(MEASURED, MARKS, strict=True):
        values = [getattr(trial.evidence, name) for trial in trials]
        points = [(v, p) for v, p in zip(values, places, strict=True) if v is not None]
        if points:
            panel.scatter(*zip(*points, strict=True), marker=mark, s=18, label=name, alpha=0.8)
    scores = [score(trial.evidence) for trial in trials]
    panel.plot(scores, places, color="black", linewidth=0.8, label="score")
    labels = [
        f"{trial.axis}: {' '.join(f'{k}={v}' for k, v in trial.evidence.settings.items())}"
        for trial in trials
    ]
    panel.set_yticks(places, labels, fontsize=6)
    panel.invert_yaxis()
    panel.set_xlim(-0.02, 1.02)
    panel.set_xlabel("share")
    panel.set_title(calibrated.editor, loc="left")
    panel.legend(fontsize=7, loc="lower left", ncols=3)
