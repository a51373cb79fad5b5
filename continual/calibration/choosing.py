"""Chooses a setting from evidence: scores, the best trial, and the bound of a budget.

Knows numbers alone; leaves trials to `trials`.
"""

from __future__ import annotations

from collections.abc import Sequence

from continual.calibration.trials import Evidence

ADDING_UP = ("general", "others")
TOLERANCE = 0.01
"""Scores nearer than this count as equal: the cheaper setting, which is tried first, is chosen."""
TIMES = 3
"""The losses of an editor with a budget add up. General text and other facts count as they would
stand behind so many times as many facts."""


def score(evidence: Evidence) -> float:
    """Return the harmonic mean of all measured shares: a high share makes up for no low one."""
    times = 1 if evidence.spent is None else TIMES
    shares = [
        share ** (times if name in ADDING_UP else 1) for name, share in evidence.measured.items()
    ]
    return len(shares) / sum(1.0 / share for share in shares) if all(shares) else 0.0


def best(trials: Sequence[Evidence], tolerance: float = TOLERANCE) -> Evidence:
    """Return the first trial whose score is within the tolerance of the highest. If all scores are
    0, return the trial with the most facts that arrive, the first of equal ones."""
    score_max = max(map(score, trials))
    if not score_max:
        return max(trials, key=lambda evidence: evidence.arrives)
    return next(evidence for evidence in trials if score(evidence) >= score_max - tolerance)


def bound(curve: Sequence[Evidence], stays_min: float) -> float | None:
    """Return the largest spending of a budget at which `stays_min` stays, by a straight line
    between the sizes on both sides of it. If even the largest size stays, return its spending; None
    if no size does."""
    points = sorted((e.spent or 0.0, e.stays) for e in curve)
    inside_points = [point for point in points if point[1] >= stays_min]
    outside_points = [point for point in points if point[1] < stays_min]
    if not inside_points:
        return None
    low = max(inside_points)
    crossings = [point for point in outside_points if point[0] > low[0]]
    if not crossings:
        return low[0]
    high = min(crossings)
    return low[0] + (high[0] - low[0]) * (low[1] - stays_min) / (low[1] - high[1])


ARRIVES_MIN = 0.95


def is_sound(evidence: Evidence, stays_min: float, neighbours_max: float) -> bool:
    """Tell whether an editor with these settings should come early in a chain: most facts arrive,
    and the losses are within the budgets of a run."""
    neighbours = evidence.neighbours
    return (
        evidence.arrives >= ARRIVES_MIN
        and evidence.stays >= stays_min
        and (neighbours is None or neighbours >= 1.0 - neighbours_max)
    )
