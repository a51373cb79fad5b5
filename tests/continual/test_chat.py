"""Corrections in the turns of a chat, on a tiny model that chats."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from continual.base import WrongBaseModel
from continual.patches.neuron import NeuronPatch
from continual.prompts import Chat
from continual.session import Session, open_session
from continual.tasks.chat import ChatTemplate
from tests.continual.conftest import Make, reopened, write_lines
from tests.tiny_chat import END, KNOWN, save_chat_model, templated, turn
from tests.tiny_language import CAPITALS, ask, capital


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("models") / "chat")


@pytest.fixture
def session(chat_model: Path, made: Make, tmp_path: Path) -> Session:
    train = [{"messages": turn(c), "answer": capital(c)} for c in range(6, KNOWN)]
    train += [{"prompt": ask(c), "answer": capital(c)} for c in range(6, KNOWN)]
    return made(chat_model, train_probes=write_lines(tmp_path / "train.jsonl", train))


def other(country: int) -> str:
    """A capital that the model does not answer."""
    return CAPITALS[(7 * country + 4) % len(CAPITALS)]


def in_chat(country: int, **more: Any) -> dict[str, Any]:
    return {"messages": turn(country), "target_new": other(country), **more}


def generated(session: Session, text: str) -> str:
    """The text that `generate` puts behind another, special tokens included."""
    ids = session.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    answer = session.task.answer(session.model, session.task.question(text), 12)
    assert session.task.question(text).ids == tuple(ids[0].tolist())
    return str(session.tokenizer.decode(answer))


def outcome(session: Session, record: Mapping[str, Any], **settings: Any) -> str:
    """The word on one correction."""
    (step,) = session.apply([record], **settings)
    return step.outcomes[-1].outcome


def test_probes_in_a_chat_are_right_before_the_first_edit(session: Session) -> None:
    assert session.run_state.ledger.count("train").rate == 1.0


def test_a_new_store_names_its_joining_and_its_template(session: Session) -> None:
    digest = ChatTemplate(session.tokenizer).digest
    assert session.store.settings["task"] == {
        "joining": "in-place",
        "name": "causal",
        "template": digest,
    }


def test_a_store_whose_template_has_changed_is_not_opened(
    chat_model: Path, made: Make, tmp_path: Path
) -> None:
    directory = shutil.copytree(chat_model, tmp_path / "model")
    session = made(directory)
    session.close()
    template = directory / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "model"))
    with pytest.raises(
        WrongBaseModel, match=r"chat_template\.jinja in .* changed since this store was made"
    ):
        open_session(session.store.path)


def test_a_correction_in_a_chat_is_generated_without_a_blank_and_ends_its_turn(
    session: Session,
) -> None:
    assert generated(session, templated(0)) == f"{capital(0)}{END}"
    assert outcome(session, in_chat(0)) == "applied"
    assert generated(session, templated(0)) == f"{other(0)}{END}"
    assert session.ask(Chat.from_json(turn(0))) == other(0)


def test_a_prompt_that_the_template_made_is_corrected_in_the_same_way(session: Session) -> None:
    record = {"prompt": templated(0), "target_new": other(0), "target_old": capital(0)}
    assert outcome(session, record) == "applied"
    assert generated(session, templated(0)) == f"{other(0)}{END}"
    assert [session.ask(templated(c)) for c in range(6, KNOWN)] == [
        capital(c) for c in range(6, KNOWN)
    ]


def test_a_correction_for_both_forms_is_right_in_both(session: Session) -> None:
    record = {"prompt": ask(0), "target_new": other(0), "forms": ["plain", "chat"]}
    assert outcome(session, record) == "applied"
    assert generated(session, ask(0)).startswith(f" {other(0)}")
    assert generated(session, templated(0)) == f"{other(0)}{END}"
    (identity,) = session.run_state.retention.requests
    count = session.run_state.ledger.count("edit", [identity])
    assert (count.right, count.total) == (1, 1)
    found = session.run_state.ledger.outcomes()
    assert found[f"{identity}:edit:0"]
    assert found[f"{identity}:edit:1"]
    with reopened(session) as again:
        assert again.run_state.ledger.outcomes() == found


def test_a_correction_that_holds_in_one_form_of_two_is_made_in_the_other(
    session: Session,
) -> None:
    """What the chat answers rightly already is not enough."""
    assert outcome(session, in_chat(0)) == "applied"
    record = {"prompt": ask(0), "target_new": other(0), "forms": ["plain", "chat"]}
    assert outcome(session, record) == "applied"
    assert generated(session, ask(0)).startswith(f" {other(0)}")
    assert outcome(session, record | {"case": "again"}) == "repeated"


def test_an_edit_is_wrong_when_one_of_its_forms_is(session: Session) -> None:
    record = {"prompt": ask(0), "target_new": other(0), "forms": ["plain", "chat"]}
    (first,) = session.apply([record])
    identity, ledger = first.outcomes[-1].id, session.run_state.ledger
    assert ledger.count("edit").rate == 1.0
    session.edited.put([against(session, templated(0), other(0))])
    ledger.advance()
    found = ledger.outcomes()
    assert (found[f"{identity}:edit:0"], found[f"{identity}:edit:1"]) == (True, False)
    count = ledger.count("edit", [identity])
    assert (count.right, count.total) == (0, 1)
    assert ledger.count("edit").rate == 0.0


def against(session: Session, prompt: str, answer: str) -> NeuronPatch:
    """A neuron that takes an answer's first token from one prompt."""
    rows = session.site.rows([session.task.encode(prompt, answer)])
    query, token = rows.query[:1], int(rows.targets[0])
    away = session.model.lm_head.weight[token : token + 1]
    bias = torch.tensor([-0.9])
    return NeuronPatch(
        session.site.block, query / query.square().sum(), bias, -1000.0 * away, ("against",)
    )


def test_a_later_correction_in_one_form_takes_the_place_of_one_in_both(session: Session) -> None:
    session.apply([{"prompt": ask(0), "target_new": other(0), "forms": ["plain", "chat"]}])
    assert outcome(session, {"messages": turn(0), "target_new": other(1)}) == "applied"
    assert len(session.run_state.retention.requests) == 1


@pytest.mark.parametrize("editor", ["ft-l", "memit"])
def test_other_editors_answer_for_both_forms_or_fail(session: Session, editor: str) -> None:
    record = {
        "prompt": ask(0),
        "target_new": other(0),
        "subject": "Badar",
        "forms": ["plain", "chat"],
    }
    word = outcome(session, record, editor=editor)
    both = [session.ask(ask(0)), session.ask(Chat.from_json(turn(0)))]
    assert (word == "applied") == (both == [other(0), other(0)])


def test_a_chat_is_a_rephrase_and_a_probe_of_other_corrections(session: Session) -> None:
    record = {
        "prompt": ask(0),
        "target_new": other(0),
        "held_out_rephrases": [turn(0, 1)],
        "locality": [{"messages": turn(7), "answer": capital(7)}],
        "portability": [{"messages": turn(8), "answer": capital(8)}],
    }
    assert outcome(session, record) == "applied"
    found = session.run_state.ledger.outcomes()
    identity = next(iter(session.run_state.retention.requests))
    assert found[f"{identity}:locality:0"]
    assert found[f"{identity}:portability:0"]
    assert f"{identity}:held_out:0" in found


def test_the_history_keeps_chats_and_stands_the_same_when_opened_again(session: Session) -> None:
    session.apply([in_chat(0), in_chat(1, rephrases=[turn(1, 1)])])
    before = session.run_state.ledger.outcomes()
    fingerprint = session.edited.fingerprint
    with reopened(session) as again:
        assert again.edited.fingerprint == fingerprint
        assert again.run_state.ledger.outcomes() == before
        assert again.run_state.ledger.remeasure() == {}


def test_a_paragraph_is_corrected_and_judged_whole(session: Session) -> None:
    """All of its tokens are right, and `generate` writes it up to the end of the turn."""
    paragraph = " ".join(
        f"In {1900 + n} the capital of {ask(n).split()[3]} is {CAPITALS[(5 * n) % 40]}."
        for n in range(8)
    )
    record = {"messages": turn(0), "target_new": paragraph}
    targets = session.task.encode(Chat.from_json(turn(0)), paragraph).targets
    assert len(targets) > 64
    assert outcome(session, record) == "applied"
    question = session.task.question(Chat.from_json(turn(0)))
    assert session.task.answer(session.model, question, len(targets)) == targets
    assert session.ask(Chat.from_json(turn(0)), tokens_max=len(targets)) == paragraph
