"""The tasks: each turns requests into tokens, and defines a right answer. One file per task.

A task turns (prompt, answer) into an `Encoding`: the question that goes in, the positions where the
answer is predicted, and the tokens wanted there. Everything behind it works on encodings alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, cast

import torch
from torch import Tensor

from continual.choices import TASKS
from continual.errors import CeditError
from continual.prompts import Prompt
from continual.requests import Limits
from continual.settings import DEFAULT_TASK
from continual.tasks.joining import IN_PLACE

if TYPE_CHECKING:
    from continual.base import PretrainedBase


@dataclass(frozen=True)
class Question:
    """A prompt as tokens, without any answer."""

    ids: tuple[int, ...]  # for the blocks that are edited
    source: tuple[int, ...] = ()  # for the encoder, if there is one

    def __len__(self) -> int:
        return len(self.ids) + len(self.source)


@dataclass(frozen=True)
class Encoding:
    """A prompt with an answer, in the form for one teacher-forced pass."""

    question: Question
    positions: tuple[int, ...]  # among `ids`: where the answer's tokens are predicted
    targets: tuple[int, ...]  # the tokens wanted there, terminator included
    within: tuple[int, ...] = ()  # a text with these positions, which goes in whole instead

    def __len__(self) -> int:
        """Count the tokens that go in."""
        return len(self.ids) + len(self.question.source)

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """The tokens for the edited blocks: the question's, and all of the answer but its last one;
        or the text that contains them."""
        return self.within or self.question.ids + self.targets[:-1]

    def answered(self, answer: tuple[int, ...]) -> Encoding:
        """Return the same question with another answer of as many tokens."""
        return replace(self, targets=answer)


def sequences(encodings: Sequence[Encoding]) -> tuple[list[Encoding], list[int]]:
    """Find the sequences that show all of these probes, and each probe's place among them.

    A probe is a sequence of its own, unless it stands in a text: then all probes of the text are
    read off one sequence, as nothing in a decoder depends on later tokens.
    """
    rows: list[Encoding] = []
    texts: dict[tuple[int, ...], int] = {}
    places: list[int] = []
    for encoding in encodings:
        place = texts.setdefault(encoding.within, len(rows)) if encoding.within else len(rows)
        if place == len(rows):
            rows.append(
                Encoding(Question(encoding.within), (), ()) if encoding.within else encoding
            )
        places.append(place)
    return rows, places


def answer_places(encodings: Sequence[Encoding], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the (sequence, position) of every answer token of a pass over these probes: [n]
    each."""
    _, owners = sequences(encodings)
    places = [(i, p) for i, e in zip(owners, encodings, strict=True) for p in e.positions]
    sequence, position = torch.tensor(places, device=device).T
    return sequence, position


@dataclass(frozen=True)
class PromptText:
    """A prompt as the text to be tokenised."""

    text: str
    is_whole: bool  # its special tokens stand in it, and it gets no others


class Task(Protocol):
    """The contract between the engine and a task."""

    name: ClassVar[str]
    architecture: ClassVar[str]
    """The class of transformers' that loads its models."""
    limits: Limits
    """The limits on a request."""

    @classmethod
    def of(cls, base: PretrainedBase, settings: Mapping[str, Any], limits: Limits) -> Self:
        """Make the task for a base model, from the store's `[task]` table. Raises CeditError if
        they do not fit."""

    def settings(self) -> dict[str, Any]:
        """Return the settings that a new store's `[task]` table gets beside the given ones."""

    def encode(self, prompt: Prompt, answer: str) -> Encoding:
        """Encode a probe. Raises RequestError for too many tokens or none, and for a chat that the
        model cannot take."""

    def question(self, prompt: Prompt) -> Question:
        """Encode a prompt alone, to be answered. Raises RequestError."""

    def asked(self, prompt: Prompt) -> PromptText:
        """Return a prompt as the text to be tokenised. Raises RequestError."""

    def tokens(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text that an answer will follow, however long it is."""

    def readable(self, ids: Sequence[int]) -> str:
        """Return a prompt's tokens as a text that can follow another text."""

    def inputs(self, batch: Sequence[Encoding]) -> dict[str, Tensor]:
        """Return the model inputs of a batch, padded on the right to the longest `ids` and the
        longest source, with an attention_mask if one is padded; padding changes nothing at real
        positions."""

    def answer(self, model: Any, question: Question, tokens_max: int) -> tuple[int, ...]:
        """Return the tokens of a model's greedy answer, at most `tokens_max`."""

    def text(self, answer: Sequence[int]) -> str:
        """Return the answer that these tokens spell, without its terminator."""


def task_class(settings: Mapping[str, Any]) -> type[Task]:
    """Return the class of the task that a store's `[task]` table names. Raises CeditError for an
    unknown task."""
    name = settings.get("name", DEFAULT_TASK)
    if name not in TASKS:
        raise CeditError(
            f"Unknown task {name!r}: [task] name is one of {', '.join(TASKS)}. Correct it, or "
            "install the package that adds it."
        )
    return cast(type[Task], TASKS[name].load())


def make_task(base: PretrainedBase, settings: Mapping[str, Any]) -> Task:
    """Make the task that a store's `[task]` table names, for a base model. Raises CeditError, also
    for a model that lacks a property that the engine relies on; see `agreement`."""
    from continual.tasks import agreement

    task = _task_of(base, settings)
    agreement.require_looking_back(base)
    agreement.require_unmoved_by_padding(base, task)
    agreement.require_seen(task)
    return task


def _task_of(base: PretrainedBase, settings: Mapping[str, Any]) -> Task:
    return task_class(settings).of(base, settings, Limits.of(settings))


def new_settings(base: PretrainedBase, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `[task]` table of a new store: the given settings, today's way of joining prompts
    and answers, and the task's own settings for the model. Raises CeditError."""
    table = {"joining": IN_PLACE, **settings}
    return {**table, **_task_of(base, table).settings()}
