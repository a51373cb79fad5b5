"""The sequential metrics, on cases small enough to count by hand."""

from __future__ import annotations

import pytest

from continual.recheck.metrics import Count, Rates, ratio
from tests.continual.conftest import probes_of, write_lines
from tests.tiny_language import CAPITALS, ask, capital, correction


def test_a_rate_of_nothing_is_none():
    assert Count().rate is None
    assert Count(0, 4).rate == 0.0
    assert Count(3, 4).rate == 0.75
    assert Count(1, 2) + Count(2, 2) == Count(3, 4)


def test_a_ratio_is_accuracy_now_over_accuracy_before():
    assert ratio(Count(9, 10), Count(10, 10)) == 0.9
    assert ratio(Count(4, 10), Count(8, 10)) == 0.5
    assert ratio(Count(9, 10), Count(6, 10)) == pytest.approx(1.5)  # it may pass 1
    assert ratio(Count(0, 10), Count(5, 10)) == 0.0


def test_a_ratio_to_nothing_is_none():
    assert ratio(Count(5, 10), Count(0, 10)) is None
    assert ratio(Count(), Count(5, 10)) is None
    assert ratio(Count(), Count()) is None


def test_rates_are_given_by_name_with_null_for_what_was_not_measured():
    assert Rates(SR=1.0, ER=0.5).to_json() == {
        "SR": 1.0,
        "GR": None,
        "ER": 0.5,
        "ER_incl": None,
        "TrainR": None,
        "TestR": None,
        "Locality": None,
        "Watch": None,
        "Neighbours": None,
        "Continuation": None,
        "Fluency": None,
    }


# -- counted over a few steps


def rates_of(session, records, **changes):
    return [step.measured.rates for step in session.apply(records, **changes)]


def generality(session, record) -> tuple[int, int]:
    """How many of a request's held-out rephrases are right now, asked from outside."""
    prompts = record["held_out_rephrases"]
    return sum(session.ask(p, tokens_max=1) == record["target_new"] for p in prompts), len(prompts)


def test_before_any_edit_there_is_nothing_but_the_base(knowing):
    rates = Rates(**knowing.store.ledger(0)["rates"])
    assert rates == Rates(TrainR=1.0, TestR=1.0)


def test_the_current_edit_counts_in_er_incl_only(bare):
    first, second = rates_of(bare, [correction(1), correction(2)])
    assert (first.ER, first.ER_incl) == (None, 1.0)
    assert (second.ER, second.ER_incl) == (1.0, 1.0)


def test_the_whole_current_batch_is_left_out_of_er(bare):
    first, second = rates_of(bare, [correction(c) for c in range(5)], batch_size=3)
    assert (first.ER, first.ER_incl) == (None, 1.0)
    assert (second.ER, second.ER_incl) == (1.0, 1.0)


FAILING = [
    {"prompt": "the capital of Erewhon is", "target_new": CAPITALS[1]},
    {"prompt": "the capital of Laputa is", "target_new": CAPITALS[2]},  # the same tokens
    correction(1),
    correction(2),
]


def test_a_failed_request_counts_in_sr_and_from_the_next_step_in_er(bare):
    rates = rates_of(bare, FAILING)
    assert [r.SR for r in rates] == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4])
    assert [r.ER for r in rates] == [None, 1.0, 0.5, pytest.approx(2 / 3)]
    assert [r.ER_incl for r in rates] == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4])


def test_skips_and_repeats_are_no_attempts(knowing):
    records = [correction(30), correction(25, capital(25)), correction(30), correction(31)]
    rates = rates_of(knowing, records)
    assert [r.SR for r in rates] == [1.0] * 4
    assert [r.ER for r in rates] == [None, 1.0, 1.0, 1.0]


def test_a_superseded_request_counts_in_sr_and_no_longer_in_er(bare):
    a, b = correction(1, CAPITALS[1]), correction(1, CAPITALS[2])
    rates = rates_of(bare, [a, correction(2), b, correction(3)])
    assert [r.SR for r in rates] == [1.0] * 4
    assert [r.ER for r in rates] == [None, 1.0, 1.0, 1.0]
    retention = bare.run_state.retention
    assert (retention.attempts, len(retention.requests)) == (Count(4, 4), 3)


def test_generality_is_measured_straight_after_each_edit_weighted_by_rephrases(knowing):
    records = [
        correction(30, held_out_rephrases=[ask(30, 1), ask(30, 2), ask(30, 3)]),
        correction(31, held_out_rephrases=[ask(31, 2)]),
        correction(32),
    ]
    right = total = 0
    for record in records:
        (step,) = knowing.apply([record])
        if "held_out_rephrases" in record:
            found = generality(knowing, record)
            right, total = right + found[0], total + found[1]
        assert step.measured.rates.GR == right / total
    assert total == 4


def test_generality_is_not_measured_again_when_edits_come_back_or_go(knowing):
    """What a later edit does to an earlier one's rephrases is no part of GR."""
    record = correction(25, held_out_rephrases=[ask(25, 1), ask(25, 2)])
    (first,) = knowing.apply([record])
    before = first.measured.rates.GR
    (second,) = knowing.apply([correction(25, CAPITALS[1])])
    assert second.measured.rates.GR == before


def test_learned_rephrases_count_for_generality_only_where_none_are_held_out(knowing):
    both = correction(30, rephrases=[ask(30, 1)], held_out_rephrases=[ask(30, 2)])
    learned = correction(31, rephrases=[ask(31, 1), ask(31, 2)])
    steps = knowing.apply([both, learned])
    assert [step.measured.generality.total for step in steps] == [1, 2]
    assert steps[1].measured.generality.right == 2  # what it learned from is right


def test_train_and_test_accuracies_are_relative_to_before_the_first_edit(
    made, knowing_model, tmp_path
):
    """The model knows six of eight training probes; a correction then changes one of the six."""
    wrong = [{"prompt": ask(c), "answer": CAPITALS[0]} for c in (8, 9)]
    assert CAPITALS[0] not in (capital(8), capital(9))
    session = made(
        knowing_model,
        train_probes=write_lines(tmp_path / "train.jsonl", [*probes_of(range(6), 0), *wrong]),
        test_probes=write_lines(tmp_path / "test.jsonl", wrong),
    )
    assert session.store.ledger(0)["base"] == {"train": [6, 8], "test": [0, 2]}
    (step,) = session.apply([correction(30)])
    train = session.run_state.ledger.count("train")
    assert train.total == 8
    assert step.measured.rates.TrainR == (train.right / 8) / (6 / 8)
    assert step.measured.rates.TestR is None  # nothing was right before


def test_locality_is_the_share_of_answers_that_are_as_they_were(knowing):
    places = [{"prompt": ask(c, 3), "answer": CAPITALS[5]} for c in range(12, 16)]
    before = [knowing.ask(p["prompt"], tokens_max=1) for p in places]
    (step,) = knowing.apply([correction(30, locality=places)])
    after = [knowing.ask(p["prompt"], tokens_max=1) for p in places]
    kept = sum(a == b for a, b in zip(before, after, strict=True))
    assert step.measured.rates.Locality == kept / 4
