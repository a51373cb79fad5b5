"""A text that repeats itself has little entropy left."""

from __future__ import annotations

import math

from continual.watch.fluency import entropy, share_kept


def test_different_words_have_the_entropy_of_their_number() -> None:
    bigrams, trigrams = math.log2(7), math.log2(6)  # of eight different tokens
    expected = (2 / 3 * bigrams + 4 / 3 * trigrams) / 2
    assert math.isclose(entropy(range(8)), expected)


def test_one_word_again_and_again_has_none() -> None:
    assert entropy([5] * 8) == 0.0
    assert share_kept([5] * 8, range(8)) == 0.0


def test_the_base_itself_keeps_all_of_it() -> None:
    assert share_kept([1, 2, 3, 4], [1, 2, 3, 4]) == 1.0
    assert share_kept([1, 2, 3, 4], [7, 7, 7, 7]) == 1.0  # there is nothing to lose
