"""The comparison behind the benchmark of a served model notices an answer that no state gives."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("httpx")

from benchmarks.serving import HeardAnswer, Load, _spread, _take, compare, row_of
from continual.new_store import NewStore, init
from continual.prompts import Chat
from tests import tiny_language as language

TOKENS = 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one correction."""
    folder = tmp_path_factory.mktemp("load")
    model = language.save_decoder(folder / "model", language.trained_decoder())
    with init(folder / "store", NewStore(str(model))) as session:
        session.apply([language.correction(1)], editor="tpatcher")
    return folder / "store"


def heard(text: str, *fingerprints: str) -> HeardAnswer:
    return HeardAnswer("phase", language.ask(1), set(fingerprints), text, 1.0, 0.5)


def test_an_answer_is_compared_with_the_state_that_it_names(store: Path) -> None:
    from continual.session import open_session

    with open_session(store, writable=False) as session:
        head, base = session.store.head.fingerprint, session.store.base.fingerprint
        after = session.ask(language.ask(1), TOKENS)
        session.stand_at("base")
        before = session.ask(language.ask(1), TOKENS)
    assert before != after
    good = [heard(f" {after} ", head), heard(before, base), heard(after, head)]
    mixed = [heard(before, head), heard(after, base), heard(after, head, base), heard(after, "x")]
    assert compare(store, [*good, *mixed], TOKENS) == 2
    assert [answer.is_mixed for answer in (*good, *mixed)] == [False] * 3 + [True] * 4
    broken = heard("", head)
    broken.fault = "the stream broke off"
    row = row_of("phase", [*good, *mixed, broken], 2.0)
    assert (row["answers"], row["mixed"], row["refused"]) == (7, 4, 1)
    assert (row["per_second"], row["p99"], row["first_p50"], row["states"]) == (3.5, 1.0, 0.5, 3)


def test_a_stream_is_put_together_from_its_chunks() -> None:
    answer = HeardAnswer("phase", "x")
    for line in (
        'data: {"system_fingerprint": "a", "choices": [{"delta": {"role": "assistant"}}]}',
        'data: {"system_fingerprint": "a", "choices": [{"delta": {"content": "Os"}}]}',
        ": ping",
        'data: {"system_fingerprint": "b", "choices": [{"text": "lo"}]}',
        "data: [DONE]",
    ):
        _take(answer, line, 0.0)
    assert (answer.text, answer.fingerprints, answer.fault) == ("Oslo", {"a", "b"}, None)
    _take(answer, 'data: {"error": {"message": "no"}}', 0.0)
    assert answer.fault == "no"


def test_chats_are_asked_as_chats_and_questions_are_spread() -> None:
    load = Load("http://x", (), 1, 5, 0)
    path, body = load.body(Chat.asking("Hello"))
    assert (path, body["messages"][-1]["content"]) == ("/v1/chat/completions", "Hello")
    assert load.body("Hello")[1]["prompt"] == "Hello"
    assert _spread("abcdefgh", 4) == ["a", "c", "e", "g"]
    assert _spread("ab", 4) == ["a", "b"]
