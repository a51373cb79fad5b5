"""Fluency: the entropy of the n-grams of a continuation (Meng et al. 2022, appendix F).

A text that repeats itself has few different n-grams, and so little entropy. Knows token ids alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""The weight of each length of n-gram, as in the public code of ROME."""


def entropy(ids: Sequence[int]) -> float:
    """Return the weighted mean of the entropies of bigrams and trigrams, in bits; 0 for one
    token."""
    parts = [weight * _entropy_of(ids, count) for count, weight in WEIGHTS.items()]
    return sum(parts) / len(parts)


def _entropy_of(ids: Sequence[int], count: int) -> float:
    grams = Counter(tuple(ids[i : i + count]) for i in range(len(ids) - count + 1))
    total = sum(grams.values())
    return -sum(n / total * math.log2(n / total) for n in grams.values())


def share_kept(ids: Sequence[int], base: Sequence[int]) -> float:
    """Return the entropy of a continuation as a share of the base's, at most 1."""
    base_entropy = entropy(base)
    return min(1.0, entropy(ids) / base_entropy) if base_entropy else 1.0
