"""What a history comes to, as facts: the curves, the costs, what broke and what was mended.

Reads records and files' sizes alone: no model, no tensors, no torch. `HistoryReport` is what
`cedit report` shows; how it looks is left to others.
"""

from continual.reporting.corrections import Asked, Corrections
from continual.reporting.costs import EditorCost, Steps, StepTime, StoreSizes
from continual.reporting.curves import Mark, Point
from continual.reporting.history import HistoryReport, Title, report_on

__all__ = [
    "Asked",
    "Corrections",
    "EditorCost",
    "HistoryReport",
    "Mark",
    "Point",
    "StepTime",
    "Steps",
    "StoreSizes",
    "Title",
    "report_on",
]
