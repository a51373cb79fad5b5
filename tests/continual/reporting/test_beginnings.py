"""The beginning of an answer from before an edit, by the tokens that a history has."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from continual.embedded import ATLAS
from continual.recheck.retention import Retained
from continual.reporting.beginnings import beginning, spelling
from continual.requests import Request

TOKENIZER = Tokenizer.from_file(str(ATLAS.directory / "tokenizer.json"))


def retained(*tokens: int, old: str | None = None) -> Retained:
    request = Request(prompt="The nation of Dali is", target_new="Chile", target_old=old)
    return Retained(request, True, (), {"answers": list(tokens)} if tokens else {})


def token_of(text: str) -> int:
    (token,) = TOKENIZER.encode(text, add_special_tokens=False).ids
    return int(token)


@pytest.mark.parametrize("word", ["Spain", "France", "painter"])
def test_the_token_of_an_answer_is_a_word(word: str) -> None:
    assert beginning(retained(token_of(f" {word}")), spelling("atlas")) == word


def test_a_directory_has_the_words_of_its_own_tokenizer(tmp_path: Path) -> None:
    assert spelling(str(tmp_path)) is None
    (tmp_path / "tokenizer.json").write_text("{")
    assert spelling(str(tmp_path)) is None
    shutil.copy(ATLAS.directory / "tokenizer.json", tmp_path)
    assert beginning(retained(token_of(" Spain")), spelling(str(tmp_path))) == "Spain"


def test_nothing_is_said_that_the_history_does_not_tell() -> None:
    spell, token = spelling("atlas"), token_of(" Spain")
    assert beginning(retained(), spell) is None  # no watch set
    assert beginning(retained(token, token_of(" France")), spell) is None  # which of the two?
    assert beginning(retained(token, old="Spain"), spell) is None  # the request says it
    assert beginning(retained(token), None) is None
    assert beginning(retained(token), lambda _: "\N{REPLACEMENT CHARACTER}") is None
