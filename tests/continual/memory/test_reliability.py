"""Precision, recall, thresholds and calibration of chances."""

import pytest
import torch

from continual.memory.reliability import Judged, ScopeReport, best_threshold, platt, reliability


def judged(chances, truth):
    return Judged(torch.tensor(chances), torch.tensor(truth))


def test_the_report_counts():
    report = ScopeReport.of(judged([0.9, 0.8, 0.7, 0.2, 0.1], [1.0, 1.0, 0.0, 1.0, 0.0]), 0.5)
    assert (report.precision, report.recall, report.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert report.pairs == 5


def test_rates_of_nothing_are_none():
    report = ScopeReport.of(judged([0.1, 0.2], [0.0, 0.0]), 0.5)
    assert report.precision is None and report.recall is None and report.f1 is None


def test_every_pair_is_in_one_bin():
    bins = reliability(judged([0.0, 0.05, 0.1, 0.99, 1.0], [0.0, 1.0, 0.0, 1.0, 1.0]))
    assert [b.count for b in bins] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert bins[0].share == 0.5 and bins[0].chance == pytest.approx(0.025)
    assert bins[5].share is None


def test_the_calibration_error_counts_bins_in_which_nothing_is_true():
    report = ScopeReport.of(judged([0.25, 0.25, 0.95, 0.95], [0.0, 0.0, 1.0, 1.0]), 0.5)
    assert report.calibration_error == pytest.approx((2 * 0.25 + 2 * 0.05) / 4)


def test_the_best_threshold_is_in_the_middle_of_those_that_divide():
    found = best_threshold(judged([0.1, 0.3, 0.7, 0.9], [0.0, 0.0, 1.0, 1.0]))
    assert found == pytest.approx(0.5, abs=0.02)


def test_calibration_undoes_a_slope_and_an_offset():
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, generator=random, dtype=torch.float64)
    truth = (torch.rand(20_000, generator=random) < torch.sigmoid(logits)).double()
    slope, offset = platt(3 * logits - 1, truth)
    assert slope == pytest.approx(1 / 3, rel=0.05) and offset == pytest.approx(1 / 3, abs=0.05)


def test_pairs_that_are_all_told_apart_have_finite_chances():
    slope, offset = platt(torch.tensor([-5.0, -4.0, 4.0, 5.0]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert 0 < slope < 10 and abs(offset) < 10
