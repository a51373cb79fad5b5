"""The report on a history, as facts: the curves, the costs, the corrections in force, the
broken and the mended ones, and the branches that were rolled back.

Reads records and files' sizes alone: no model, no tensors, no torch. `HistoryReport` has the facts
that `cedit report` shows; their look is left to others.
"""

from continual.reporting.branches import Branch
from continual.reporting.corrections import Corrections, CorrectionText
from continual.reporting.costs import EditorCost, StepCosts, StepTime, StoreSizes
from continual.reporting.curves import BranchMark, Point, Stop
from continual.reporting.history import HistoryReport, Title, report_on

__all__ = [
    "Branch",
    "BranchMark",
    "CorrectionText",
    "Corrections",
    "EditorCost",
    "HistoryReport",
    "Point",
    "StepCosts",
    "StepTime",
    "Stop",
    "StoreSizes",
    "Title",
    "report_on",
]
