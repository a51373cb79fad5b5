"""Questions to a served model, and their answers.

An `Ask` names its revision and says how it is to be answered; a `Hearer` hears of it while the
answer grows. Knows nothing of the model.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from continual.prompts import Prompt
from continual.serving.sampling import Sampling

STOP, LENGTH = "stop", "length"
RECEIPT_BYTES = 12


@dataclass(frozen=True)
class State:
    """The state of the model that answers: a revision and its fingerprint."""

    revision: str
    seq: int
    fingerprint: str


@dataclass(frozen=True)
class TokenChance:
    """A token of an answer with its log probability, and the likeliest ones in its place."""

    text: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Spoke:
    """An edit that spoke at a token: its request, and how far its gate was open."""

    request: str  # empty if the patch does not name it
    kind: str  # neuron, codebook, lookup or memory
    activation: float
    """Of a neuron its activation; of a look-up's row the cosine of query and key; of a codebook's
    the share of its radius that is left; of a record the score."""


@dataclass(frozen=True)
class SpokenToken:
    """A token of an answer with the edits that spoke when it was chosen; or a token of a prompt
    with those that spoke when it was read."""

    place: int
    text: str
    edits: tuple[Spoke, ...]


@dataclass(frozen=True)
class AnswerText:
    """A whole answer."""

    text: str
    finish: str  # STOP or LENGTH
    tokens: int
    chances: tuple[TokenChance, ...] = ()
    spoken: tuple[SpokenToken, ...] = ()
    spoken_in_prompt: tuple[SpokenToken, ...] = ()


@dataclass(frozen=True)
class Answered:
    """All answers to an ask, and the state that gave them."""

    state: State
    prompt_tokens: int
    answers: tuple[AnswerText, ...]
    in_weights: int = 0  # corrections that stand in the weights, and so in every token

    @property
    def answer_tokens(self) -> int:
        """The number of tokens of all answers."""
        return sum(answer.tokens for answer in self.answers)


class Hearer(Protocol):
    """Hears of an answer as it grows; called on the model's thread, so it may not wait."""

    def began(self, state: State, prompt_tokens: int) -> None:
        """Hear that the answer begins, and which state gives it."""

    def piece(self, index: int, text: str, chances: Sequence[TokenChance]) -> None:
        """Hear a piece of the answer at a place among several."""

    def ended(self, answered: Answered) -> None:
        """Hear that all is answered."""

    def failed(self, error: Exception) -> None:
        """Hear that there is no answer, or no more of it."""


@dataclass(frozen=True)
class Ask:
    """A question to the model."""

    prompt: Prompt
    hearer: Hearer
    revision: str = "head"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings of `Sampling` that the caller asks for; the model's own stand for the others."""
    tokens_max: int | None = None  # None: all that there is room for
    stops: tuple[str, ...] = ()
    count: int = 1  # answers
    chances: int | None = None  # the number of likeliest tokens to tell; None: tell none
    explains: bool = False  # says which edit spoke at which token
    id: str = field(default_factory=lambda: secrets.token_hex(RECEIPT_BYTES))
    cancelled: threading.Event = field(default_factory=threading.Event)

    def sampling(self, model: Any) -> Sampling:
        """Return the settings of its choices, with the model's own as defaults."""
        return Sampling.of_model(model).changed(**self.settings)
