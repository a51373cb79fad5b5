"""Corrections in the chat of a pretrained model, where CEDIT_REAL_BASE names its directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from continual.new_store import NewStore, init
from continual.prompts import Chat
from continual.session import Session
from tests.continual.conftest import write_lines

REAL_BASE = os.environ.get("CEDIT_REAL_BASE", "")

pytestmark = [
    pytest.mark.skipif(not REAL_BASE, reason="CEDIT_REAL_BASE names no model directory"),
    pytest.mark.timeout(1800),
]

SHORT = {"role": "system", "content": "Answer in one word."}


def asking(question: str) -> list[dict[str, str]]:
    return [SHORT, {"role": "user", "content": question}]


KNOWN = [
    {"messages": asking(f"What is the capital of {country}?"), "answer": city}
    for country, city in [("France", "Paris"), ("Japan", "Tokyo"), ("Italy", "Rome")]
]
AUSTRALIA = asking("What is the capital of Australia?")
BOLIVIA = "The largest city of Bolivia is"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A store with two corrections: one in a chat, one in both forms."""
    folder = tmp_path_factory.mktemp("real")
    probes = write_lines(folder / "train.jsonl", KNOWN)
    with init(folder / "store", NewStore(REAL_BASE, train_probes=probes)) as made:
        assert made.run_state.ledger.count("train").rate == 1.0
        steps = made.apply(
            [
                {"messages": AUSTRALIA, "target_new": "Hobart"},
                {"prompt": BOLIVIA, "target_new": "Oruro", "forms": ["plain", "chat"]},
            ]
        )
        assert [step.outcomes[-1].outcome for step in steps] == ["applied", "applied"]
        yield made


def generated(session: Session, prompt: Any, *, in_chat: bool = True) -> str:
    """The text that `generate` puts behind a prompt, in plain greedy decoding."""
    read = session.tokenizer
    if in_chat:
        ids = read.apply_chat_template(
            prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        ids = read(prompt, return_tensors="pt")
    made = session.model.generate(**ids, do_sample=False, max_new_tokens=12)
    return str(read.decode(made[0, ids["input_ids"].shape[1] :]))


def test_a_chat_correction_is_generated_without_a_blank_and_ended_by_its_turn(
    session: Session,
) -> None:
    end = session.tokenizer.eos_token
    assert generated(session, AUSTRALIA) == f"Hobart{end}"
    assert session.ask(Chat.from_json(AUSTRALIA)) == "Hobart"


def test_a_correction_in_both_forms_is_generated_in_both(session: Session) -> None:
    end = session.tokenizer.eos_token
    assert generated(session, BOLIVIA, in_chat=False).startswith(" Oruro")
    assert generated(session, [{"role": "user", "content": BOLIVIA}]) == f"Oruro{end}"


def test_what_the_base_knew_in_its_chat_is_generated_as_before(session: Session) -> None:
    end = session.tokenizer.eos_token
    for probe in KNOWN:
        assert generated(session, probe["messages"]) == f"{probe['answer']}{end}"
