"""How examples are split: disjoint, by seed, and each fold with a part of D_edit."""

from __future__ import annotations

import pytest

from benchmarks.protocol.splits import Example, Sizes, Splits, distinct

EXAMPLES = [Example(f"question {n}", f"answer {n}") for n in range(40)]
SIZES = Sizes(validation=4, edit=11, test=6)


def test_the_four_sets_are_disjoint_and_have_every_example() -> None:
    splits = Splits.of(EXAMPLES, SIZES, seed=3)
    sets = (splits.train, splits.validation, splits.edit, splits.test)
    assert [len(part) for part in sets] == [19, 4, 11, 6]
    assert {example for part in sets for example in part} == set(EXAMPLES)


def test_a_split_is_that_of_its_seed() -> None:
    assert Splits.of(EXAMPLES, SIZES, seed=3) == Splits.of(EXAMPLES, SIZES, seed=3)
    assert Splits.of(EXAMPLES, SIZES, seed=3).edit != Splits.of(EXAMPLES, SIZES, seed=4).edit


def test_folds_are_parts_of_the_edit_set_in_an_order_by_seed() -> None:
    splits = Splits.of(EXAMPLES, SIZES, seed=3)
    folds = splits.folds(3, seed=0)
    assert [len(fold) for fold in folds] == [4, 4, 3]
    assert sorted(e.prompt for fold in folds for e in fold) == sorted(e.prompt for e in splits.edit)
    assert folds == splits.folds(3, seed=0)
    assert folds != splits.folds(3, seed=1)


def test_the_sample_of_the_training_set_is_fixed_and_inside_it() -> None:
    splits = Splits.of(EXAMPLES, SIZES, seed=3)
    sample = splits.train_sample(5, seed=0)
    assert len(set(sample)) == 5
    assert set(sample) <= set(splits.train)
    assert sample == splits.train_sample(5, seed=0)
    assert len(splits.train_sample(1000, seed=0)) == len(splits.train)


def test_a_split_without_a_training_set_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        Splits.of(EXAMPLES[:21], SIZES, seed=0)


def test_a_prompt_counts_once_and_not_at_all_with_two_answers() -> None:
    twice = [Example("a", "1", ("A?",)), Example("A", "1"), Example("b", "1"), Example("b", "2")]
    assert distinct(twice) == [Example("a", "1", ("A?",))]
    reworded = [Example("c", "1", ("d",)), Example("d", "2"), Example("e", "2", ("c",))]
    assert distinct(reworded) == [Example("e", "2", ("c",))]


def test_rephrases_of_a_request_are_held_out() -> None:
    request = Example("a", "1", ("b", "c")).request()
    assert request == {"prompt": "a", "target_new": "1", "held_out_rephrases": ["b", "c"]}
