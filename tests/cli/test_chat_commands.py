"""Chats on the command line, and the warning about probes that a base answers hardly any of."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cedit
from tests.tiny_chat import KNOWN, PHRASED, save_chat_model, turn
from tests.tiny_language import CAPITALS, ask, capital


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a folder of its own, where its store is found."""
    monkeypatch.chdir(tmp_path)


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def probes(*, in_chat: bool) -> list[dict[str, Any]]:
    """What the model knows, asked in a chat or with a blank that it never saw there."""
    kinds = [(c, p) for c in range(KNOWN) for p in range(PHRASED)]
    if in_chat:
        return [{"messages": turn(c, p), "answer": capital(c)} for c, p in kinds]
    return [{"prompt": f"{ask(c, p)} ", "answer": capital(c)} for c, p in kinds]


def test_corrections_in_a_chat_are_applied_shown_asked_and_reverted(
    cedit: Cedit, chat_model: Path, tmp_path: Path
) -> None:
    other = CAPITALS[4]
    train = written(tmp_path / "train.jsonl", probes(in_chat=True)[PHRASED:])
    made = cedit("init", "--model", str(chat_model), "--train-probes", str(train), "--json")
    assert made.last["accuracy"]["train"] == 1.0
    assert made.last["warnings"] == []
    stream = written(tmp_path / "news.jsonl", [{"messages": turn(0), "target_new": other}])
    assert cedit("apply", str(stream)).code == 0
    asked = cedit("ask", "--messages", json.dumps(turn(0)), "--json").last
    assert (asked["messages"], asked["answer"]) == (turn(0), other)
    assert asked["prompt"] == f"user: {ask(0)}"
    chat = written(tmp_path / "chat.json", [{"messages": turn(0)}])
    assert cedit("ask", "--messages", str(chat), "--at", "base").out.strip() == capital(0)
    shown = cedit("show", "head", "--json").last["outcomes"][0]
    assert (shown["messages"], shown["prompt"]) == (turn(0), f"user: {ask(0)}")
    for command in (["show", "head"], ["log"], ["diff", "base", "head"]):
        assert f"user: {ask(0)}" in cedit(*command).out
    reverted = cedit("revert", shown["id"], "--json").last
    assert reverted["prompt"] == f"user: {ask(0)}"
    assert cedit("report").code == 0
    assert f"user: {ask(0)}" in Path("report.html").read_text(encoding="utf-8")
    assert cedit("verify").code == 0


def test_a_model_without_a_template_is_asked_no_messages(cedit: Cedit, made_store: Path) -> None:
    told = cedit("ask", "--messages", json.dumps(turn(0)), "--store", str(made_store))
    assert told.code == 1
    assert "the model's tokenizer has none" in told.err


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([], "Ask one thing"),
        (["a prompt", "--messages", "[]"], "Ask one thing"),
        (["--messages", "[]"], "needs a list of messages"),
        (["--messages", "nowhere.json"], "nowhere.json cannot be read"),
        (["--messages", "[{]"], "cannot be read"),
    ],
)
def test_what_cannot_be_asked_is_a_mistake_of_usage(
    cedit: Cedit, said: list[str], why: str
) -> None:
    told = cedit("ask", *said)
    assert told.code == 2
    assert why in " ".join(told.err.split())


def test_probes_that_the_base_hardly_answers_are_said_loudly_before_anything_is_edited(
    cedit: Cedit, chat_model: Path, tmp_path: Path
) -> None:
    train = written(tmp_path / "train.jsonl", probes(in_chat=False))
    made = cedit("init", "--model", str(chat_model), "--train-probes", str(train))
    warning = f"warning: The base model answers 0 of its {KNOWN * PHRASED} train probes"
    assert warning in made.err
    assert "it has a chat template, so its probes may have to be `messages`" in made.err
    assert warning in cedit("status").err
    (told,) = cedit("status", "--json").last["warnings"]
    assert f"warning: {told}" in made.err.replace("\n", " ")
    stream = written(tmp_path / "news.jsonl", [{"messages": turn(0), "target_new": CAPITALS[4]}])
    applied = cedit("apply", str(stream), "--json")
    assert applied.last["warnings"] == [told]
    assert warning in applied.err
    assert cedit("report", "--json").last["warnings"] == [told]
    cedit("report", "--output", "report.html")
    page = html.unescape(Path("report.html").read_text(encoding="utf-8"))
    assert told in page


def test_few_probes_and_probes_that_are_answered_bring_no_warning(
    cedit: Cedit, chat_model: Path, tmp_path: Path
) -> None:
    few = written(tmp_path / "few.jsonl", probes(in_chat=False)[:19])
    known = written(tmp_path / "known.jsonl", probes(in_chat=True))
    paths = ["--train-probes", str(few), "--test-probes", str(known)]
    made = cedit("init", "--model", str(chat_model), *paths, "--json")
    assert made.last["accuracy"]["train"] < 0.1
    assert made.last["warnings"] == []
    assert "warning" not in made.err
