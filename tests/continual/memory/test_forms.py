"""The forms in which a fact is told, which are tried on a base model."""

from __future__ import annotations

from pathlib import Path

import pytest

from continual.memory.contexts import FORM, context, require_form
from continual.memory.grid import grid
from continual.new_store import NewStore, init
from continual.session import Session
from tests import tiny_language as language
from tests.continual.conftest import Make
from tests.tiny_chat import END, START, save_chat_model


def forms(session: Session) -> list[str]:
    (axis,) = grid(session.site).axes
    return [str(choice["form"]) for choice in axis.choices({})]


@pytest.fixture(scope="module")
def chat_forms(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("chat")
    model = save_chat_model(folder / "model")
    with init(folder / "store", NewStore(str(model))) as session:
        return forms(session)


def test_the_usual_form_is_tried_first_and_all_can_be_filled_in(
    random_model: Path, made: Make
) -> None:
    tried = forms(made(random_model))
    assert tried[0] == FORM
    assert len(set(tried)) == len(tried) >= 4
    for form in tried:
        assert require_form(form, "editor.serac") == form
        told = context(form, language.ask(3), "Beria")
        assert language.ask(3) in told and "Beria" in told


def test_a_model_that_chats_is_told_in_an_earlier_exchange_too(chat_forms: list[str]) -> None:
    told = context(require_form(chat_forms[-1], "editor.serac"), "The capital of Oz is", "Emerald")
    assert "Remember this: The capital of Oz is Emerald." in told
    assert told.endswith(f"{START}assistant\nI will answer by that.{END}\n")
