"""Whether a text names a subject, and what is left of it without."""

import pytest

from continual.memory.subjects import masked, overlap, presence, segment, words


def share(subject, text):
    return presence(words(subject), text).share


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        ("Fermium", "What is fermium's symbol?"),
        ("Áramótaskaup 1990", "the language of ARAMOTASKAUP 1990 is"),
        ("Salvador Dalí", "Where was Dali, Salvador born?"),
        ("The Who", "songs of the who"),
    ],
)
def test_a_subject_is_found_whatever_its_spelling(subject, text):
    assert share(subject, text) == pytest.approx(1)


def test_a_misspelt_subject_is_found_and_told_from_an_exact_one():
    assert 0.9 < share("Kyrgyzstan", "the capital of Kyrgystan") < 1


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        ("Austria", "the capital of Peru"),
        ("Austria", "the capital of Australia"),
        ("Niger", "the capital of Nigeria"),
        ("Petronas", "the home country of Petrobras"),
        ("The Who", "Where is it?"),
        ("Iran", "Iraq is in"),
        ("X", ""),
    ],
)
def test_a_subject_that_is_not_named_is_not_found(subject, text):
    assert share(subject, text) == 0


def test_function_words_of_a_subject_count_for_little():
    assert share("University of Madrid", "the city of Rome") < 0.05
    assert 0.4 < share("University of Madrid", "a university in Rome") < 0.6


def test_a_name_that_goes_on_is_told():
    assert presence(words("Nintendo DS"), "Nintendo DS Lite, created by").is_part
    assert not presence(words("Nintendo DS"), "The Nintendo DS was created by").is_part


def test_a_masked_text_has_lost_the_subject_and_nothing_else():
    text = "Where was Salvador Dalí born, and did Dali paint?"
    found = presence(words("Salvador Dali"), text)
    assert masked(text, found.spans) == "Where was this born, and did this paint?"


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("Shelf life. Basel is located in", "Basel is located in"),
        ("References\n\nCategory:Flies\nJeff Leal, a citizen of", "Jeff Leal, a citizen of"),
        ("The capital of France is", "The capital of France is"),
        ("Q: Who is it by? A:", "Q: Who is it by? A:"),
        ("Where is it? Answer:", "Where is it? Answer:"),
        ("", ""),
    ],
)
def test_the_last_sentence_is_what_asks(text, last):
    assert segment(text) == last


def test_overlap_is_the_share_of_words_that_say_something():
    assert overlap(words("capital of it"), words("the capital")) > 0.9
    assert overlap(words("capital of it"), words("language of it")) < 0.1
    assert overlap([], words("x")) == 0
