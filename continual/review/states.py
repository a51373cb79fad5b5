"""The states of a correction on its way, and the ways between them.

    flagged → pending → approved → applying → applied → verified
              rejected, duplicate, failed; superseded, reverted, broken → repaired

The states up to `applied` are decided here; those behind it are read from the history.
"""

from __future__ import annotations

from collections.abc import Mapping

FLAGGED, PENDING, REJECTED, DUPLICATE = "flagged", "pending", "rejected", "duplicate"
APPROVED, APPLYING, APPLIED, FAILED = "approved", "applying", "applied", "failed"
VERIFIED, BROKEN, REPAIRED = "verified", "broken", "repaired"
SUPERSEDED, REVERTED = "superseded", "reverted"

STATES = (
    *(FLAGGED, PENDING, APPROVED, APPLYING, APPLIED, VERIFIED),
    *(BROKEN, REPAIRED, FAILED, SUPERSEDED, REVERTED, REJECTED, DUPLICATE),
)
OPEN = frozenset({FLAGGED, PENDING})
"""States in which a person has yet to decide."""
STANDING = frozenset({APPLIED, VERIFIED, BROKEN, REPAIRED})
"""States of corrections that the model has."""
LIVE = OPEN | STANDING | {APPROVED, APPLYING}
"""States in which the same correction again is a duplicate."""
GONE = frozenset({SUPERSEDED, REVERTED})

_FATES = STANDING | GONE
WAYS: Mapping[str, frozenset[str]] = {
    FLAGGED: frozenset({PENDING, REJECTED}),
    PENDING: frozenset({APPROVED, REJECTED}),
    APPROVED: frozenset({APPLYING, PENDING, REJECTED}),
    APPLYING: frozenset({APPLIED, FAILED, APPROVED}),
    FAILED: frozenset({APPROVED, REJECTED, PENDING}),
    REJECTED: frozenset({PENDING}),
    DUPLICATE: frozenset({PENDING, REJECTED}),
    **{state: (_FATES - {state}) | {APPROVED} for state in GONE},
    **{state: _FATES - {state} for state in STANDING},
}
"""The states that may follow each state."""
DECISIONS = frozenset({APPROVED, REJECTED, PENDING})
"""States that a person may choose."""
