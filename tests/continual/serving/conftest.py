"""Desks on tiny models, and hearers that remember."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from continual.prompts import Prompt
from continual.serving.asks import Answered, Ask, State, TokenChance
from continual.serving.desk import Desk
from continual.session import Session

MakeDesk = Callable[..., Desk]
WAIT_S = 60


class Remembering:
    """A hearer that remembers all that it hears."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.pieces: list[tuple[int, str]] = []
        self.answer: Answered | None = None
        self.error: Exception | None = None
        self.on_piece: Callable[[], None] = lambda: None
        self._is_done = threading.Event()

    def began(self, state: State, prompt_tokens: int) -> None:
        self.states.append(state)

    def piece(self, index: int, text: str, chances: Sequence[TokenChance]) -> None:
        self.pieces.append((index, text))
        self.on_piece()

    def ended(self, answered: Answered) -> None:
        self.answer = answered
        self._is_done.set()

    def failed(self, error: Exception) -> None:
        self.error = error
        self._is_done.set()

    def wait(self) -> Answered:
        """The whole answer; raises the error of an ask that failed."""
        assert self._is_done.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        assert self.answer is not None
        return self.answer

    @property
    def text(self) -> str:
        """The first answer, put together from its pieces."""
        return "".join(text for index, text in self.pieces if index == 0)


def asked(desk: Desk, prompt: Prompt, **how: Any) -> Remembering:
    """Ask a desk."""
    hearer = Remembering()
    desk.ask(Ask(prompt, hearer, **how))
    return hearer


@pytest.fixture
def desk_of() -> Iterator[MakeDesk]:
    """Makes desks that work, and closes them in the end."""
    desks: list[Desk] = []

    def make(session: Session, *, starts: bool = True, **limits: Any) -> Desk:
        desks.append(Desk(session, **limits))
        if starts:
            desks[-1].start()
        return desks[-1]

    yield make
    for desk in desks:
        desk.close()


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny model that chats."""
    from tests import tiny_chat

    return tiny_chat.save_chat_model(tmp_path_factory.mktemp("models") / "chat")
