"""How a setting is chosen from evidence. Knows numbers alone."""

from __future__ import annotations

from collections.abc import Sequence

from continual.calibration.trials import Evidence

TOLERANCE = 0.01
"""Scores nearer than this are the same: the cheaper setting, which is tried first, is chosen."""


def score(evidence: Evidence) -> float:
    """The harmonic mean of all shares that were measured: none of them makes up for another."""
    shares = evidence.measured
    return len(shares) / sum(1.0 / share for share in shares) if all(shares) else 0.0


def best(trials: Sequence[Evidence]) -> Evidence:
    """The first of those whose score is nearly the highest; where none has any, the one that
    arrives most often, then the first."""
    highest = max(map(score, trials))
    if not highest:
        return max(trials, key=lambda evidence: evidence.arrives)
    return next(evidence for evidence in trials if score(evidence) >= highest - TOLERANCE)


def bound(curve: Sequence[Evidence], stays_min: float) -> float | None:
    """How much of a budget may be spent so that `stays_min` stays, by a straight line between the
    sizes on both sides of it. Where even the largest size stays, its own; None where no size does.
    """
    points = sorted((e.spent or 0.0, e.stays) for e in curve)
    within = [point for point in points if point[1] >= stays_min]
    beyond = [point for point in points if point[1] < stays_min]
    if not within:
        return None
    low = max(within)
    over = [point for point in beyond if point[0] > low[0]]
    if not over:
        return low[0]
    high = min(over)
    return low[0] + (high[0] - low[0]) * (low[1] - stays_min) / (low[1] - high[1])


ARRIVES_MIN = 0.95


def is_sound(evidence: Evidence, stays_min: float, neighbours_max: float) -> bool:
    """Tell whether an editor with these settings is worth being asked first: most facts arrive, and
    no more is lost than the budgets of a run allow."""
    near = evidence.neighbours
    return (
        evidence.arrives >= ARRIVES_MIN
        and evidence.stays >= stays_min
        and (near is None or near >= 1.0 - neighbours_max)
    )
