"""Reports of a run: a record for each step, and a summary at its end.

Knows the objects that `cedit apply --json` prints. Adds up the reports of steps, measures nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from continual.history.inspection import UNMEASURED, JsonObject, asked, rates_at
from continual.history.warnings import store_warnings
from continual.recheck.retention import APPLIED, Outcome, count_outcomes
from store import Store

if TYPE_CHECKING:
    from continual.step.pipeline import Step


COUNTED = (
    "read",
    "attempted",
    "applied",
    "skipped",
    "superseded",
    "quarantined",
    "failed",
    "broke",
    "recovered",
)
"""The counts of a run, as its summary names them."""

SHOWN_MAX = 100  # quarantined records in the record of one step
REASONS_MAX = 1000  # reasons that a run tells apart
LINES_MAX = 5  # lines named beside a reason


@dataclass
class Remarks:
    """Odd things about the records read, counted, with the first lines of each."""

    lines: dict[str, list[int]] = field(default_factory=dict)  # by reason, the first few
    reasons: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)  # records by key
    unnamed: int = 0  # requests with a subject that their prompt does not name

    def quarantined(self, line: int, reason: str) -> None:
        """Note a record that cannot be read."""
        if reason not in self.reasons and len(self.reasons) >= REASONS_MAX:
            reason = "other reasons"
        self.reasons[reason] += 1
        lines = self.lines.setdefault(reason, [])
        if len(lines) < LINES_MAX:
            lines.append(line)

    def to_json(self) -> JsonObject:
        """Return the summary's entries; the most frequent reason comes first."""
        return {
            "quarantine": [
                {"reason": reason, "count": count, "lines": self.lines[reason]}
                for reason, count in self.reasons.most_common()
            ],
            "unknown_keys": dict(self.unknown.most_common()),
            "unnamed_subjects": self.unnamed,
        }


def step_record(step: Step) -> JsonObject:
    """Return the record of one step."""
    rates = step.measured.rates.to_json() if step.measured else UNMEASURED
    return {
        "type": "step",
        "seq": step.revision.seq,
        "revision": step.revision.id,
        "editor": step.revision.body["editor"],
        "requests": len(asked(step.outcomes)),
        **count_outcomes(step.outcomes),
        "outcomes": [_told(outcome) for outcome in step.outcomes],
        "repaired": sum(o.repair and o.outcome == "applied" for o in step.outcomes),
        "quarantined": len(step.quarantined),
        "quarantine": [
            {"line": item.number, "reason": item.reason} for item in step.quarantined[:SHOWN_MAX]
        ],
        "unknown_keys": dict(step.unknown),
        "unnamed_subjects": step.unnamed,
        "position": _position(step),
        **rates,
        **_transitions(step),
        "edit_s": step.edit_s,
        "probe_s": step.probe_s,
        "recheck_s": step.recheck_s,
        "patch_bytes": step.patch_bytes,
    }


def _told(outcome: Outcome) -> JsonObject:
    """Return an outcome's id, its kind, and the editor or the reason."""
    entry = {"id": outcome.id, "outcome": outcome.outcome, "editor": outcome.editor}
    return {k: v for k, v in {**entry, "reason": outcome.reason}.items() if v}


def _position(step: Step) -> int | None:
    """Return the step's position in its stream, in records; None if the position is not kept."""
    states = list(step.revision.body["streams"].values())
    return int(states[-1]["position"]) if states else None


def _transitions(step: Step) -> dict[str, int]:
    """Count the probes of earlier requests and of the probe sets that broke or recovered."""
    turned = step.measured.turned if step.measured else {}
    step_ids = {outcome.id for outcome in asked(step.outcomes)}
    outcomes = [is_right for key, is_right in turned.items() if key.split(":")[0] not in step_ids]
    return {"broke": outcomes.count(False), "recovered": outcomes.count(True)}


@dataclass
class RunTally:
    """Sums over the steps of a run."""

    gone: Set[str] = frozenset()  # requests taken back before the run
    started: float = field(default_factory=time.perf_counter)
    counts: Counter[str] = field(default_factory=Counter)
    remarks: Remarks = field(default_factory=Remarks)

    def take(self, record: JsonObject) -> None:
        """Add the counts of a step's record."""
        self.counts["steps"] += 1
        self.counts["read"] += record["requests"] + record["quarantined"]
        for name in COUNTED[1:]:
            self.counts[name] += record[name]
        for entry in record["quarantine"]:
            self.remarks.quarantined(entry["line"], entry["reason"])
        self.remarks.unknown.update(record["unknown_keys"])
        self.remarks.unnamed += record["unnamed_subjects"]
        identities = (o["id"] for o in record["outcomes"] if o["outcome"] == APPLIED)
        self.counts["again"] += sum(identity in self.gone for identity in identities)

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started

    @property
    def is_partial(self) -> bool:
        """True if a requested correction is not in the model now."""
        return bool(self.counts["failed"] or self.counts["quarantined"])

    def summary(self, store: Store) -> JsonObject:
        """Summarise the run; the metrics are the recorded ones at head."""
        return {
            "type": "summary",
            **{name: self.counts[name] for name in (*COUNTED, "again")},
            "steps": self.counts["steps"],
            **self.remarks.to_json(),
            **rates_at(store, store.head),
            "head": store.head.id,
            "fingerprint": store.head.fingerprint,
            "seconds": round(self.seconds, 3),
            "warnings": store_warnings(store),
        }
