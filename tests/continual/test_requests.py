"""Requests: what is accepted, what names them, and what makes two of them compete."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from continual.errors import CeditError, RequestError
from continual.prompts import MESSAGES_MAX, TEXT_CHARACTERS_MAX, Chat, Message
from continual.requests import (
    Probe,
    Request,
    named,
    normalised,
)

CAPITAL = {"prompt": "The capital of Australia is", "target_new": "Canberra"}

ASKED = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is the capital of Australia?"},
]

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
filled_words = words.filter(str.strip)
chats = st.lists(filled_words, min_size=1, max_size=3).map(
    lambda turns: Chat(tuple(Message("user", turn) for turn in turns))
)
prompts = filled_words | chats
probes = st.builds(Probe, prompt=prompts, answer=filled_words, name=words)
requests = st.builds(
    Request,
    prompt=prompts,
    target_new=filled_words,
    subject=st.none() | words,
    relation=st.none() | words,
    target_old=st.none() | words,
    rephrases=st.lists(prompts, max_size=3).map(tuple),
    held_out_rephrases=st.lists(prompts, max_size=3).map(tuple),
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
    assert original.id != original.model_copy(update={"target_new": f"{original.prompt}!"}).id
    assert len(original.id) == 32
    assert set(original.id) <= set("0123456789abcdef")


def test_the_id_is_a_hash_that_anyone_can_take():
    canonical = '{"prompt":"Ä?","subject":"ä","target_new":"b"}'
    same = Request(prompt="Ä?", subject="ä", target_new="b", case="7")
    assert same.id == hashlib.sha256(canonical.encode()).hexdigest()[:32]


def test_empty_fields_are_not_written():
    assert request(subject="  ", rephrases=[], case=None).to_json() == CAPITAL


def test_prompts_and_targets_are_kept_to_the_letter():
    spaced = request(prompt=" The capital of Australia is\n", target_new="\tCanberra ")
    assert spaced.to_json()["prompt"] == " The capital of Australia is\n"
    assert spaced.to_json()["target_new"] == "\tCanberra "
    assert spaced.id != request().id


def test_outer_whitespace_makes_no_other_target_of_a_fact():
    assert not request(target_new=" Canberra").disagrees_with(request())
    assert request(target_new="canberra").disagrees_with(request())


def test_outer_whitespace_makes_no_other_fact():
    spaced = request(prompt=" The capital of Australia is\n")
    assert (spaced.key, spaced.prompt_key) == (request().key, request().prompt_key)


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
    assert request(prompt="x" * TEXT_CHARACTERS_MAX, target_new="y" * TEXT_CHARACTERS_MAX)
    with pytest.raises(RequestError, match="'prompt' has 65537 characters"):
        request(prompt="x" * (TEXT_CHARACTERS_MAX + 1))
    with pytest.raises(RequestError, match="'target_new' has 65537 characters"):
        request(target_new="y" * (TEXT_CHARACTERS_MAX + 1))


def test_a_rephrase_is_another_wording_and_stands_once():
    given_twice = request(rephrases=["b", " a", "b", CAPITAL["prompt"], "a"])
    assert given_twice.rephrases == ("b", " a", "a")


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


# -- chats


def test_messages_take_the_place_of_a_prompt_wherever_there_is_one():
    record = {
        "messages": ASKED,
        "target_new": "Canberra",
        "rephrases": ["Australia's capital?", ASKED[1:]],
        "held_out_rephrases": [[{"role": "user", "content": "Capital of Australia?"}]],
        "locality": [{"messages": ASKED[1:], "answer": "Sydney", "name": "near"}],
    }
    asked = Request.from_json(record)
    assert asked.prompt == Chat.from_json(ASKED)
    assert asked.rephrases == ("Australia's capital?", Chat.from_json(ASKED[1:]))
    assert asked.locality[0].prompt == Chat.from_json(ASKED[1:])
    assert asked.to_json() == record


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "needs a list of messages"),
        ("What?", "needs a list of messages"),
        ([{"role": "user"}], "message 0 that is not"),
        ([{"role": "user", "content": "a", "name": "b"}], "message 0 that is not"),
        ([{"role": " ", "content": "a"}], "message 0 without a role"),
        ([{"role": "user", "content": " "}], "its last message is empty"),
        ([*ASKED, {"role": "assistant", "content": "Perth"}], "assistant's own turn: leave it out"),
        (ASKED * MESSAGES_MAX, "messages, more than the 64 allowed"),
    ],
)
def test_messages_that_ask_nothing_are_refused_with_the_reason(messages, reason):
    with pytest.raises(RequestError, match=f"'messages' .*{reason}"):
        Request.from_json({"messages": messages, "target_new": "Canberra"})


def test_a_prompt_and_messages_together_are_refused():
    with pytest.raises(RequestError, match="give one of them"):
        request(messages=ASKED)


def test_chats_compete_by_their_turns_and_not_with_plain_prompts():
    louder = [{**turn, "content": f" {turn['content'].upper()}"} for turn in ASKED]
    one, other = (
        Request.from_json({"messages": m, "target_new": "Canberra"}) for m in (ASKED, louder)
    )
    assert one.key == other.key
    assert one.key != Request(prompt=str(one.prompt), target_new="Canberra").key


def test_a_chat_reads_as_lines():
    asked = Request.from_json({"messages": ASKED, "target_new": "Canberra"})
    assert str(asked.prompt) == "system: Be short.\nuser: What is the capital of Australia?"


# -- forms


def test_a_correction_can_hold_for_the_plain_prompt_and_for_the_chat_turn():
    both = request(forms=["chat", "plain"])
    assert both.forms == ("plain", "chat")
    assert both.asked == (CAPITAL["prompt"], Chat.asking(CAPITAL["prompt"]))
    assert Request.from_json(both.to_json()) == both


def test_the_plain_form_is_not_said_and_the_chat_form_alone_is_a_chat():
    assert request(forms=["plain"]) == request()
    turn = [{"role": "user", "content": CAPITAL["prompt"]}]
    assert request(forms=["chat"]).to_json() == {"messages": turn, "target_new": "Canberra"}


def test_a_correction_in_both_forms_competes_with_either():
    both = {*request(forms=["plain", "chat"]).keys}
    assert both & {*request().keys}
    assert both & {*request(forms=["chat"]).keys}
    assert not {*request().keys} & {*request(forms=["chat"]).keys}


def test_forms_are_of_a_text_and_have_names():
    with pytest.raises(RequestError, match="forms are of a prompt that is a text"):
        Request.from_json({"messages": ASKED, "target_new": "a", "forms": ["plain"]})
    with pytest.raises(RequestError, match="forms"):
        request(forms=["poem"])
