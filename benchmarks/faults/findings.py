"""The result of a fault: the number of cases, and an account of each violation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

EXAMPLES_MAX = 20  # violations that are told in full


@dataclass
class Finding:
    """One row of the table. A control is a fault that must be noticed: the check's own check."""

    fault: str
    cases: int = 0
    violations: int = 0
    control: bool = False
    skipped: str | None = None
    note: str = ""
    examples: list[str] = field(default_factory=list)

    def count(self, case: str, problems: list[str]) -> None:
        """Count a case, and a violation if there are problems."""
        self.cases += 1
        if problems:
            self.violations += 1
            if len(self.examples) < EXAMPLES_MAX:
                self.examples.append(f"{case}: {'; '.join(problems)}")

    @property
    def is_sound(self) -> bool:
        """True if all is as it must be; for a control, if it was noticed."""
        if self.skipped is not None:
            return True
        return self.cases > 0 and (self.violations > 0) == self.control

    def row(self) -> dict[str, Any]:
        """Return the finding as a row of the table, and as JSON."""
        verdict = "skipped" if self.skipped is not None else "ok" if self.is_sound else "FAILED"
        return {**asdict(self), "verdict": verdict, "note": self.skipped or self.note}
