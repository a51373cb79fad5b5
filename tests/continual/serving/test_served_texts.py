"""Pieces of text as tokens come, and stop texts in them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continual.serving.texts import TextPieces, UpToStop
from tests import tiny_chat

LETTERS = st.text(st.sampled_from("ab\n"), max_size=12)


@given(LETTERS, st.lists(st.text(st.sampled_from("ab\n"), min_size=1, max_size=3), max_size=3))
def test_text_ends_where_the_first_stop_text_begins(text: str, stops: list[str]) -> None:
    ends = [text.find(stop) for stop in stops if stop in text]
    # Letter by letter: a stop text counts as soon as its last letter is there.
    first = min((text.find(s) + len(s) for s in stops if s in text), default=len(text))
    closed = [s for s in stops if text[:first].endswith(s)]
    expected = text[: first - max(map(len, closed))] if closed else text
    search = UpToStop(stops)
    told = "".join(search.take(letter) for letter in text)
    assert told + search.rest() == expected
    assert search.is_done == bool(ends)


@given(st.lists(LETTERS, max_size=5))
def test_without_a_stop_text_everything_is_told_at_once(pieces: list[str]) -> None:
    search = UpToStop(())
    assert [search.take(piece) for piece in pieces] == pieces
    assert search.rest() == ""


def test_text_that_may_begin_a_stop_text_is_held_back() -> None:
    search = UpToStop(["END"])
    assert search.take("the E") == "the "
    assert search.take("N") == ""
    assert search.take("ough") == "ENough"
    assert search.take(" EN") == " "
    assert search.rest() == "EN"


@pytest.mark.parametrize("read", [tiny_chat.byte_level(), tiny_chat.metaspace()])
@given(st.text(st.sampled_from("the capital of Badar is Éé漢 🙂"), min_size=1, max_size=16))
def test_pieces_are_the_text_behind_the_prompt(read: Any, text: str) -> None:
    prompt = read("the capital of", add_special_tokens=False)["input_ids"]
    tokens = read(text, add_special_tokens=False)["input_ids"]
    whole = read.decode([*prompt, *tokens], skip_special_tokens=True)
    begun = read.decode(prompt, skip_special_tokens=True)
    pieces = TextPieces(read, prompt)
    told = [pieces.take(token) for token in tokens]
    assert begun + "".join(told) + pieces.rest() == whole
    assert not any("\ufffd" in piece for piece in told)
