"""The reliability of a scope's chances: precision, recall, calibration.

Knows chances and whether they came true; nothing of texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

BINS = 10
THRESHOLDS = tuple(step / 100 for step in range(5, 96))
_ITERATIONS = 100


@dataclass(frozen=True)
class Judged:
    """Chances that a scope gave, and the truth."""

    chances: Tensor  # [p] in [0, 1]
    truth: Tensor  # [p] 1 for a pair in scope, else 0

    def counts(self, threshold: float) -> tuple[int, int, int]:
        """Return the numbers of true positives, false positives and false negatives."""
        predictions, labels = self.chances >= threshold, self.truth > 0
        return (
            int((predictions & labels).sum()),
            int((predictions & ~labels).sum()),
            int((~predictions & labels).sum()),
        )


@dataclass(frozen=True)
class Bin:
    """The pairs whose chance lies in [low, high)."""

    low: float
    high: float
    count: int
    chance: float | None  # their mean chance
    share: float | None  # of them in scope


@dataclass(frozen=True)
class ScopeReport:
    """The reliability of a scope on pairs that it was not trained on."""

    threshold: float
    pairs: int
    precision: float | None
    recall: float | None
    f1: float | None
    calibration_error: float  # the mean of |chance - share| over the bins, by count
    reliability: tuple[Bin, ...]

    @classmethod
    def of(cls, judged: Judged, threshold: float) -> ScopeReport:
        """Make the report of these pairs."""
        hits, false_alarms, misses = judged.counts(threshold)
        bins = reliability(judged)
        points = [(b.count, b.chance, b.share) for b in bins]
        error = sum(n * abs(c - s) for n, c, s in points if c is not None and s is not None)
        return cls(
            threshold=threshold,
            pairs=len(judged.truth),
            precision=_ratio(hits, hits + false_alarms),
            recall=_ratio(hits, hits + misses),
            f1=_ratio(2 * hits, 2 * hits + false_alarms + misses),
            calibration_error=error / max(1, len(judged.truth)),
            reliability=bins,
        )

    def to_json(self) -> Mapping[str, Any]:
        """Return the report, ready for ``json.dumps``."""
        return asdict(self)


def reliability(judged: Judged) -> tuple[Bin, ...]:
    """Sort the pairs into bins of equal width, by their chance."""
    place = (judged.chances * BINS).long().clamp_max(BINS - 1)
    bins = []
    for index in range(BINS):
        chances, truth = judged.chances[place == index], judged.truth[place == index]
        mean = (float(chances.mean()), float(truth.mean())) if len(truth) else (None, None)
        bins.append(Bin(index / BINS, (index + 1) / BINS, len(truth), *mean))
    return tuple(bins)


def best_threshold(judged: Judged) -> float:
    """Return the threshold with the highest F1; of several, the middle one."""
    f1_scores = {}
    for threshold in THRESHOLDS:
        hits, false_alarms, misses = judged.counts(threshold)
        f1_scores[threshold] = 2 * hits / max(1, 2 * hits + false_alarms + misses)
    thresholds = [
        threshold for threshold in THRESHOLDS if f1_scores[threshold] == max(f1_scores.values())
    ]
    return thresholds[len(thresholds) // 2]


def platt(logits: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return slope and offset with which logits [p] become calibrated (Platt 1999).

    Truth is smoothed as he does, so that pairs that are all told apart give no infinite slope.
    """
    positives, negatives = float(truth.sum()), float(len(truth) - truth.sum())
    smoothed_truth = torch.where(
        truth > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2)
    ).double()
    line = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(
            logits.double() * line[0] + line[1], smoothed_truth
        )
        value.backward()
        return value

    optimizer.step(loss)
    slope, offset = line.detach().tolist()
    return slope, offset


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
