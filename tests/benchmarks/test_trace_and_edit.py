"""The ranks behind the question whether a trace tells where to edit."""

from __future__ import annotations

import pytest

from benchmarks.trace_and_edit import EditedFact, correlations, rank_correlation, ranked


def test_equal_numbers_share_their_rank() -> None:
    assert ranked([0.5, 0.1, 0.5, 0.9]) == [1.5, 0.0, 1.5, 3.0]


def test_the_rank_correlation_is_spearmans() -> None:
    assert rank_correlation([(1, 10), (2, 20), (9, 21)]) == pytest.approx(1.0)
    assert rank_correlation([(1, 2), (2, 1), (3, 3)]) == pytest.approx(0.5)
    assert rank_correlation([(1, 1), (2, 3), (3, 2), (4, 4), (5, 0)]) == pytest.approx(-0.1)
    assert rank_correlation([(1, 1), (2, 1), (3, 1)]) is None
    assert rank_correlation([(1, 1), (2, 2)]) is None


def test_a_difference_between_blocks_is_told_from_one_between_facts() -> None:
    """Blocks with a larger effect do better; within a block, facts with a larger one do worse."""
    rows = [
        EditedFact(
            "memit",
            block,
            "p",
            {"FFN, subject": block + 0.01 * fact},
            {"efficacy": (block - 0.1 * fact) / 4, "paraphrase": None, "specificity": 1.0},
        )
        for block in range(4)
        for fact in range(3)
    ]
    found = {(r["outcome"], r["effect"]): r for r in correlations(rows, "memit")}
    efficacy = found["efficacy", "FFN, subject"]
    assert efficacy["blocks"] == pytest.approx(1.0)
    assert efficacy["pairs"] > 0.5
    assert efficacy["within"] < -0.9
    assert found["specificity", "FFN, subject"]["pairs"] is None
    assert ("paraphrase", "FFN, subject") not in found
