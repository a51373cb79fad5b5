"""The sequential metrics (Huang et al. 2023, section 3): pure functions over counted outcomes.

    SR      share of attempted edits whose own input is right straight after the edit
    GR      accuracy on the edits' held-out rephrases straight after each, weighted by their number
    ER      accuracy now on the inputs of all edits but the current step's (ER_incl: with them)
    TrainR  accuracy now on the training probes over their accuracy before the first edit
    TestR   the same for the test probes
    Locality  share of the locality probes with the same answer as before their edit

and those of the watch set, which needs no user (`continual.watch`):

    Watch         share of held-out general positions with the next token of the base
    Neighbours    share of the edits' held-out neighbours answered as before their edit
    Continuation  share of positions behind the edits' answers that go on as before their edit
    Fluency       entropy of the n-grams of the edits' free continuations over that of the base's

A rate is None if there was nothing to measure.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Count:
    """The number of right ones, and the number of all."""

    right: int = 0
    total: int = 0

    @property
    def rate(self) -> float | None:
        """right / total; None if total is 0."""
        return self.right / self.total if self.total else None

    def __add__(self, other: Count) -> Count:
        return Count(self.right + other.right, self.total + other.total)


@dataclass(frozen=True)
class Rates:
    """The metrics after one step."""

    SR: float | None = None
    GR: float | None = None
    ER: float | None = None
    ER_incl: float | None = None
    TrainR: float | None = None
    TestR: float | None = None
    Locality: float | None = None
    Watch: float | None = None
    Neighbours: float | None = None
    Continuation: float | None = None
    Fluency: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Return the metrics by name, in the order above."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def ratio(now: Count, before: Count) -> float | None:
    """Return accuracy now over accuracy before, for TrainR and TestR. It may pass 1."""
    if not before.right or now.rate is None or before.rate is None:
        return None
    return now.rate / before.rate
