"""Batches hold every sequence once, and keep to what they may be padded to."""

from __future__ import annotations

import random

import pytest

from continual.passes.batching import by_length


@pytest.mark.parametrize("padded_max", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_batches_keep_to_their_bounds_and_miss_nothing(padded_max, seed):
    draw = random.Random(seed)
    lengths = [draw.randrange(1, 40) for _ in range(draw.randrange(60))]
    batches = by_length(lengths, 50, padded_max)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        longest, shortest = max(lengths[p] for p in batch), min(lengths[p] for p in batch)
        assert len(batch) * longest <= 50 or len(batch) == 1
        assert longest <= padded_max * shortest


def test_one_batch_is_begun_only_where_the_last_can_take_no_more():
    assert by_length([3, 1, 2, 3], 12) == [[1, 2, 0, 3]]
    assert by_length([3, 1, 2, 3], 11) == [[1, 2, 0], [3]]
    assert by_length([3, 1, 2, 3], 12, 2) == [[1, 2], [0, 3]]


def test_a_sequence_longer_than_a_batch_stands_alone():
    assert by_length([9, 2, 30], 10) == [[1], [0], [2]]


def test_nothing_makes_no_batch():
    assert by_length([], 10) == []
