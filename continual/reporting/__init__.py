"""The report on a history, as facts: the curves, the costs, the corrections in force, the
broken and the mended ones, and the branches that were rolled back.

Reads records and files' sizes alone: no model, no tensors, no torch. `HistoryReport` has the facts
that `cedit report` shows; their look is left to others.
"""

from continual.reporting.branches import Branch
from continual.reporting.corrections import Asked, Corrections
from continual.reporting.costs import EditorCost, Steps, StepTime, StoreSizes
from continual.reporting.curves import Mark, Point, Stop
from continual.reporting.history import HistoryReport, Title, report_on

__all__ = [
    "Asked",
    "Branch",
    "Corrections",
    "EditorCost",
    "HistoryReport",
    "Mark",
    "Point",
    "StepTime",
    "Steps",
    "Stop",
    "StoreSizes",
    "Title",
    "report_on",
]
