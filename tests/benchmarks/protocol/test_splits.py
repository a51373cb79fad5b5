"""How examples are split: disjoint, by seed, and each fold with a part of D_edit."""

from __future__ import annotations

import pytest

from benchmarks.protocol.splits import AnsweredInput, ExampleSplits, SplitSizes, distinct

EXAMPLES = [AnsweredInput(f"question {n}", f"answer {n}") for n in range(40)]
SIZES = SplitSizes(validation=4, edit=11, test=6)


def test_the_four_sets_are_disjoint_and_have_every_example() -> None:
    splits = ExampleSplits.of(EXAMPLES, SIZES, seed=3)
    sets = (splits.train, splits.validation, splits.edit, splits.test)
    assert [len(part) for part in sets] == [19, 4, 11, 6]
    assert {example for part in sets for example in part} == set(EXAMPLES)


def test_a_split_is_that_of_its_seed() -> None:
    assert ExampleSplits.of(EXAMPLES, SIZES, seed=3) == ExampleSplits.of(EXAMPLES, SIZES, seed=3)
    assert (
        ExampleSplits.of(EXAMPLES, SIZES, seed=3).edit
        != ExampleSplits.of(EXAMPLES, SIZES, seed=4).edit
    )


def test_folds_are_parts_of_the_edit_set_in_an_order_by_seed() -> None:
    splits = ExampleSplits.of(EXAMPLES, SIZES, seed=3)
    folds = splits.folds(3, seed=0)
    assert [len(fold) for fold in folds] == [4, 4, 3]
    assert sorted(e.prompt for fold in folds for e in fold) == sorted(e.prompt for e in splits.edit)
    assert folds == splits.folds(3, seed=0)
    assert folds != splits.folds(3, seed=1)


def test_the_sample_of_the_training_set_is_fixed_and_inside_it() -> None:
    splits = ExampleSplits.of(EXAMPLES, SIZES, seed=3)
    sample = splits.train_sample(5, seed=0)
    assert len(set(sample)) == 5
    assert set(sample) <= set(splits.train)
    assert sample == splits.train_sample(5, seed=0)
    assert len(splits.train_sample(1000, seed=0)) == len(splits.train)


def test_a_split_without_a_training_set_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        ExampleSplits.of(EXAMPLES[:21], SIZES, seed=0)


def test_a_prompt_counts_once_and_not_at_all_with_two_answers() -> None:
    twice = [
        AnsweredInput("a", "1", ("A?",)),
        AnsweredInput("A", "1"),
        AnsweredInput("b", "1"),
        AnsweredInput("b", "2"),
    ]
    assert distinct(twice) == [AnsweredInput("a", "1", ("A?",))]
    reworded = [
        AnsweredInput("c", "1", ("d",)),
        AnsweredInput("d", "2"),
        AnsweredInput("e", "2", ("c",)),
    ]
    assert distinct(reworded) == [AnsweredInput("e", "2", ("c",))]


def test_rephrases_of_a_request_are_held_out() -> None:
    request = AnsweredInput("a", "1", ("b", "c")).request()
    assert request == {"prompt": "a", "target_new": "1", "held_out_rephrases": ["b", "c"]}
