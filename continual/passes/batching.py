"""Sequences in batches of nearly one length. Knows lengths alone."""

from __future__ import annotations

import math
from collections.abc import Sequence


def by_length(
    lengths: Sequence[int], tokens_max: int, padded_max: float = math.inf
) -> list[list[int]]:
    """Divide the places of sequences into batches, the shortest first: each of at most `tokens_max`
    padded tokens, or of one longer sequence. No sequence is padded to more than `padded_max` times
    its length."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        size_max = lengths[place]  # so far
        batch = batches[-1] if batches else []
        is_full = (len(batch) + 1) * size_max > tokens_max
        if not batch or is_full or size_max > padded_max * lengths[batch[0]]:
            batches.append([])
        batches[-1].append(place)
    return batches
