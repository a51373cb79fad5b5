"""Requests: what is accepted, what names them, and what makes two of them compete."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from continual.errors import CeditError, RequestError
from continual.requests import (
    PROBES_MAX,
    PROMPT_CHARACTERS_MAX,
    TARGET_CHARACTERS_MAX,
    Probe,
    Request,
    named,
    normalised,
)

CAPITAL = {"prompt": "The capital of Australia is", "target_new": "Canberra"}

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
filled_words = words.filter(str.strip)
probes = st.builds(Probe, prompt=filled_words, answer=filled_words, name=words)
requests = st.builds(
    Request,
    prompt=filled_words,
    target_new=filled_words,
    subject=st.none() | words,
    relation=st.none() | words,
    target_old=st.none() | words,
    rephrases=st.lists(filled_words, max_size=3).map(tuple),
    held_out_rephrases=st.lists(filled_words, max_size=3).map(tuple),
    locality=st.lists(probes, max_size=2).map(tuple),
    portability=st.lists(probes, max_size=2).map(tuple),
    case=st.none() | words,
)


def request(**changes: object) -> Request:
    return Request.from_json(CAPITAL | changes)


@given(requests)
def test_a_request_survives_the_way_through_json(original):
    text = json.dumps(original.to_json())
    assert Request.from_json(json.loads(text)) == original
    assert json.dumps(Request.from_json(json.loads(text)).to_json()) == text


@given(requests)
def test_the_id_is_the_content_and_not_the_case(original):
    assert original.id == Request.from_json(original.to_json()).id
    assert original.id == original.model_copy(update={"case": "another"}).id
    assert original.id != original.model_copy(update={"target_new": original.prompt + "!"}).id
    assert len(original.id) == 32
    assert set(original.id) <= set("0123456789abcdef")


def test_the_id_is_a_hash_that_anyone_can_take():
    canonical = '{"prompt":"Ä?","subject":"ä","target_new":"b"}'
    same = Request(prompt="Ä?", subject="ä", target_new="b", case="7")
    assert same.id == hashlib.sha256(canonical.encode()).hexdigest()[:32]


def test_empty_fields_are_not_written():
    assert request(subject="  ", rephrases=[], case=None).to_json() == CAPITAL


def test_surrounding_whitespace_is_not_part_of_a_request():
    spaced = request(prompt=" The capital of Australia is\n", target_new="\tCanberra ")
    assert spaced == request()


@pytest.mark.parametrize("key", ["prompt", "target_new"])
@pytest.mark.parametrize("value", ["", " \n", None, 7, ["Canberra"], {"str": "Canberra"}])
def test_a_prompt_and_a_target_must_say_something(key, value):
    with pytest.raises(RequestError, match=key):
        request(**{key: value})


@pytest.mark.parametrize("bad", ["a\0b", "half \ud83d pair"])
@pytest.mark.parametrize("key", ["prompt", "target_new", "subject", "relation", "case"])
def test_text_that_cannot_be_stored_is_refused(key, bad):
    with pytest.raises(RequestError, match=key):
        request(**{key: bad})


def test_an_error_names_the_key_inside_a_probe():
    with pytest.raises(RequestError) as caught:
        request(locality=[{"prompt": "a", "answer": "b"}, {"prompt": "a", "answer": " "}])
    assert caught.value.reason == "'locality'[1].answer is empty"
    assert isinstance(caught.value, CeditError)


def test_a_foreign_key_is_refused_by_its_name():
    with pytest.raises(RequestError, match="'ground_truth' is not a key of cedit's own format"):
        request(ground_truth="Sydney")


def test_many_problems_make_a_short_message():
    with pytest.raises(RequestError, match="and 17 more"):
        request(**{f"key {number}": number for number in range(20)})


@given(st.text(), st.text())
def test_every_reason_can_be_printed(key, value):
    with pytest.raises(RequestError) as caught:
        Request.from_json({key: value})
    assert caught.value.reason.isascii()
    assert caught.value.reason.isprintable()


def test_lengths_are_bounded():
    assert request(prompt="x" * PROMPT_CHARACTERS_MAX, target_new="y" * TARGET_CHARACTERS_MAX)
    with pytest.raises(RequestError, match="'prompt' has 8193 characters"):
        request(prompt="x" * (PROMPT_CHARACTERS_MAX + 1))
    with pytest.raises(RequestError, match="'target_new' has 2049 characters"):
        request(target_new="y" * (TARGET_CHARACTERS_MAX + 1))


def test_the_number_of_probes_is_bounded():
    wordings = [f"wording {number}" for number in range(PROBES_MAX)]
    assert len(request(rephrases=wordings).rephrases) == PROBES_MAX
    with pytest.raises(RequestError, match="257 rephrases and probes"):
        request(rephrases=wordings, portability=[{"prompt": "a", "answer": "b"}])


def test_a_rephrase_is_another_wording_and_stands_once():
    given_twice = request(rephrases=["b", " a", "b", CAPITAL["prompt"], "a"])
    assert given_twice.rephrases == ("b", "a")


def test_what_is_learned_from_is_not_held_out():
    mixed = request(rephrases=["a"], held_out_rephrases=["c", "a", CAPITAL["prompt"], "b", "c"])
    assert mixed.held_out_rephrases == ("c", "b")


def test_a_request_does_not_change():
    with pytest.raises(ValidationError):
        request().target_new = "Sydney"


def test_requests_on_one_fact_compete_however_they_are_asked():
    one = request(subject="Australia", relation="P36")
    other = Request(
        prompt="What is Australia's capital?",
        target_new="Sydney",
        subject=" ＡＵＳＴＲＡＬＩＡ",
        relation="p36",
    )
    assert one.key == other.key
    assert one.prompt_key != other.prompt_key


@pytest.mark.parametrize("known", [{}, {"subject": "Australia"}, {"relation": "P36"}])
def test_requests_without_a_whole_fact_compete_by_prompt(known):
    assert request(**known).key == request(prompt="the  CAPITAL of\xa0Australia is ").key


def test_no_prompt_can_pose_as_a_fact():
    fact = request(subject="a", relation="b")
    assert request(prompt=fact.key).key != fact.key


@given(words)
def test_normalising_twice_is_normalising_once(text):
    assert normalised(normalised(text)) == normalised(text)


@given(words)
def test_normalised_text_has_single_spaces_and_no_other_whitespace(text):
    assert normalised(text).split() == [part for part in normalised(text).split(" ") if part]
    assert "  " not in normalised(text)


def test_a_foreign_name_is_repeated_short():
    assert named("x" * 1000) == ascii("x" * 40 + "...")
