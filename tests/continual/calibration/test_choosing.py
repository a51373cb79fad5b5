"""A setting is chosen by all that was measured of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from continual.calibration.choosing import TIMES, TOLERANCE, best, bound, score
from continual.calibration.trials import Evidence


def evidence(arrives: float = 1.0, name: str = "", **shares: Any) -> Evidence:
    settings = {"name": name}
    values = {"generalises": None, "general": None, "neighbours": None, "others": None}
    return Evidence(settings, 8, arrives, **{**values, "spent": None, "seconds": 0.0, **shares})


def test_the_score_is_the_harmonic_mean_of_what_was_measured() -> None:
    assert score(evidence(0.5, generalises=1.0)) == pytest.approx(2 / 3)
    assert score(evidence(0.8)) == pytest.approx(0.8)
    shares = {"generalises": 0.9, "general": 0.8, "neighbours": 0.7, "others": 0.6}
    expected = 5 / (1 / 0.5 + 1 / 0.9 + 1 / 0.8 + 1 / 0.7 + 1 / 0.6)
    assert score(evidence(0.5, **shares)) == pytest.approx(expected)


def test_losses_that_add_up_count_several_times() -> None:
    shares = {"general": 0.9, "others": 0.8, "neighbours": 0.7}
    expected = 4 / (1 / 0.5 + 1 / 0.9**TIMES + 1 / 0.8**TIMES + 1 / 0.7)
    assert score(evidence(0.5, **shares, spent=0.1)) == pytest.approx(expected)


def test_nothing_makes_up_for_a_share_of_zero() -> None:
    assert score(evidence(1.0, generalises=0.0, general=1.0)) == 0.0


def test_of_settings_that_do_equally_well_the_first_is_chosen() -> None:
    first = evidence(0.9, "first")
    assert best([first, evidence(0.9 + TOLERANCE / 2, "later")]) is first
    better = evidence(0.9 + 2 * TOLERANCE, "better")
    assert best([first, better]) is better


def test_of_settings_that_cost_the_same_the_best_is_chosen() -> None:
    first, later = evidence(0.9, "first"), evidence(0.9 + TOLERANCE / 2, "later")
    assert best([first, later], tolerance=0.0) is later


def test_where_no_setting_scores_the_one_that_arrives_most_is_chosen() -> None:
    little = evidence(0.25, "little", generalises=0.0)
    more = evidence(0.5, "more", generalises=0.0)
    assert best([little, more]) is more


def sized(spent: float, general: float, others: float | None = None) -> Evidence:
    return evidence(general=general, others=others, spent=spent)


def test_a_budget_ends_on_the_line_between_the_sizes_on_both_sides() -> None:
    curve = [sized(0.1, 0.99), sized(0.2, 0.98), sized(0.4, 0.94)]
    assert bound(curve, 0.97) == pytest.approx(0.25)


def test_a_budget_counts_what_loses_more_general_text_or_other_facts() -> None:
    curve = [sized(0.1, 0.99, 0.98), sized(0.3, 0.99, 0.90)]
    assert bound(curve, 0.94) == pytest.approx(0.2)


def test_where_every_size_stays_the_largest_is_the_budget() -> None:
    assert bound([sized(0.1, 1.0), sized(0.2, 0.99)], 0.97) == pytest.approx(0.2)


def test_where_no_size_stays_there_is_no_budget() -> None:
    assert bound([sized(0.1, 0.5)], 0.97) is None


def test_damage_that_is_less_at_a_larger_size_does_not_shift_the_bound_back() -> None:
    value = bound([sized(0.1, 0.99), sized(0.2, 0.96), sized(0.3, 0.98)], 0.97)
    assert value is not None and math.isclose(value, 0.3)
