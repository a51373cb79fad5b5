"""The file of tokens: made once, read by its owner alone, and trusted no further than it goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from continual.serving.tokens import FILE, FOLDER, Role, TokenProblem, Tokens, tokens_at_start


def test_the_first_start_makes_an_administrator(tmp_path: Path) -> None:
    tokens, made = tokens_at_start(tmp_path)
    assert made is not None
    assert made.rights == Role.admin
    assert tokens.owner(made.token) == made
    again, none = tokens_at_start(tmp_path)
    assert none is None
    assert again.tokens == tokens.tokens
    file = tmp_path / FOLDER / FILE
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "cedit-", "é", "\ud800", "x" * 100_000])
def test_no_other_text_is_a_token(tmp_path: Path, text: str) -> None:
    tokens, _ = tokens_at_start(tmp_path)
    assert tokens.owner(text) is None


def test_tokens_come_and_go(tmp_path: Path) -> None:
    tokens, admin = tokens_at_start(tmp_path)
    assert admin is not None
    more, made = tokens.added("ana", "approve")
    assert more.owner(made.token) == made
    assert made.rights == Role.approve > Role.propose
    with pytest.raises(TokenProblem, match="already"):
        more.added("ana", "ask")
    with pytest.raises(TokenProblem, match="no role"):
        more.added("bo", "king")
    with pytest.raises(TokenProblem, match="last administrator"):
        more.without("admin")
    assert Tokens.of(tmp_path).without("ana").owner(made.token) is None


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"tokens": [{}]}', '{"tokens": [{"name": "a", "role": "admin", "token": "x"}]}'],
)
def test_a_file_that_is_not_ours_is_refused(tmp_path: Path, text: str) -> None:
    tokens_at_start(tmp_path)
    file = tmp_path / FOLDER / FILE
    file.write_text(text)
    with pytest.raises(TokenProblem, match="no file of tokens"):
        Tokens.of(tmp_path)


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    tokens_at_start(tmp_path)
    (tmp_path / FOLDER / FILE).chmod(0o644)
    with pytest.raises(TokenProblem, match="chmod 600"):
        Tokens.of(tmp_path)
