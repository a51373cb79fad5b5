"""The progress of a step's edits: pending, applied and refused ones, with the reasons.

Knows requests, parts and reasons; leaves the model to `editing`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from continual.patches import Patch
from continual.recheck import retention
from continual.recheck.retention import Outcome
from continual.step.planning import PlannedEdit
from continual.tasks import Encoding

EditGroup = list[PlannedEdit]


@dataclass
class EditProgress:
    """The progress of a step's edits. The patches proved so far are on the model."""

    pending: dict[str, PlannedEdit]
    state: str  # of the matrices when the memory was read
    applied: dict[str, PlannedEdit] = field(default_factory=dict)
    parts: list[Patch] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    reasons: dict[str, dict[str, str]] = field(default_factory=dict)  # by request, then editor
    over_budget: Counter[str] = field(default_factory=Counter)  # single edits in a row, by editor
    narrowed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Refusals for harm, by request and editor: each editor begins as wide as it is."""
    changed: defaultdict[str, dict[Encoding, None]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """Held-out probes that an edit's refused patches changed, by request, in their order."""

    def refuse(self, identity: str, editor: str, reason: str) -> None:
        """Record why an editor did not get an edit right."""
        self.reasons.setdefault(identity, {})[editor] = reason

    def accept(
        self, edit: PlannedEdit, editor: str, attempt: int, notes: Mapping[str, object]
    ) -> None:
        """Record that an edit is applied, and why earlier editors of the chain did not do it."""
        self.applied[edit.id] = self.pending.pop(edit.id)
        earlier_reasons = {n: r for n, r in self.reasons.get(edit.id, {}).items() if n != editor}
        self.outcomes[edit.id] = Outcome(
            edit.id,
            retention.APPLIED,
            editor=editor,
            attempt=attempt,
            supersedes=edit.supersedes,
            repair=edit.repair,
            notes={**notes, **({"passed_by": earlier_reasons} if earlier_reasons else {})},
        )

    def reopen(self, edit: PlannedEdit, editor: str, reason: str) -> None:
        """Make an applied edit pending again: a later patch of the same step broke it."""
        self.pending[edit.id] = self.applied.pop(edit.id)
        del self.outcomes[edit.id]
        self.refuse(edit.id, editor, reason)

    def failures(self) -> dict[str, Outcome]:
        """Return the outcomes of the edits still pending at the end of the chain, by request."""
        return {
            identity: Outcome(
                identity,
                retention.FAILED,
                reason=_told(self.reasons.get(identity, {})),
                supersedes=edit.supersedes,
                repair=edit.repair,
            )
            for identity, edit in self.pending.items()
        }


def _told(reasons: Mapping[str, str]) -> str:
    """Join the reasons of every editor that tried, with the editors' names if there are several."""
    if not reasons:
        return "no editor proposed a patch for it"
    if len(reasons) == 1:
        return next(iter(reasons.values()))
    return "; ".join(f"{editor}: {reason}" for editor, reason in reasons.items())
