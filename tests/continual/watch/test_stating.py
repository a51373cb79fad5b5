"""Passages that state the corrected fact are known by the subject and the old answer."""

from __future__ import annotations

from continual.prompts import normalised
from continual.watch.stating import CorrectedFact


def test_a_text_is_about_a_fact_where_it_names_the_subject() -> None:
    fact = CorrectedFact.of("The capital of Australia is", "Australia", [17])
    assert fact.is_about(normalised("Sydney is the largest city of AUSTRALIA"))
    assert not fact.is_about(normalised("The capital of Austria is"))


def test_without_a_subject_half_of_the_prompts_words_do() -> None:
    fact = CorrectedFact.of("The author of Emma is", None, [17])
    assert fact.is_about(normalised("the author of something else"))
    assert not fact.is_about(normalised("an emperor of Rome"))
