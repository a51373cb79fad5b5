"""The rules that reword a claim, one by one, and what they make of FEVER."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.protocol import claims


@pytest.mark.parametrize(
    ("claim", "wanted"),
    [
        ("Stripes featured a person.", "It is true that Stripes featured a person."),
        ("The Gifted is a show.", "Indeed, the Gifted is a show."),
        ("Harold Macmillan was born in 1894.", "In 1894, Harold Macmillan was born."),
        ("In 1951, Lalla Ward was born.", "Lalla Ward was born in 1951."),
        ("Kesha was baptized on March 1st, 1987.", "Kesha was baptized on 1 March 1987."),
        ("Halsey did not sign a contract.", "Halsey didn't sign a contract."),
        ("Halsey didn't sign a contract.", "Halsey did not sign a contract."),
        ("Easy A is a film.", "Easy A is a movie."),
    ],
)
def test_a_rule_rewords_a_claim(claim: str, wanted: str) -> None:
    assert wanted in claims.rewordings(claim)


def test_names_keep_their_capital_inside_a_frame() -> None:
    assert "It is a fact that Theo is a dog." in claims.rewordings("Theo is a dog.")


def test_a_rule_that_does_not_apply_gives_nothing() -> None:
    assert len(claims.rewordings("Cats are not dogs")) == len(claims.FRAMES) + 1
    assert len(claims.rewordings("Cats meow.")) == len(claims.FRAMES)


def test_a_year_in_the_middle_stays_where_it_is() -> None:
    assert claims.year_moved("The 1974 crime film was written by Steven Spielberg.") == []


def test_no_claim_is_a_wording_of_another_with_the_other_label(data: Path) -> None:
    examples = claims.load(data)
    labels = {example.prompt: example.answer for example in examples}
    assert Counter(labels.values()).keys() == set(claims.LABELS)
    assert [
        wording
        for example in examples
        for wording in example.rephrases
        if labels.get(wording, example.answer) != example.answer
    ] == []
