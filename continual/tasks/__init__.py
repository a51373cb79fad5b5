"""How a request becomes tokens, and what counts as right: one file per task.

A task turns (prompt, answer) into an `Encoding`: the ids that go in, the positions where the answer
is predicted, and the tokens wanted there. Everything behind it works on encodings alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from continual.errors import CeditError
from continual.requests import Limits


@dataclass(frozen=True)
class Encoding:
    """A prompt with an answer, as the model is asked about it in one teacher-forced pass."""

    ids: tuple[int, ...]  # what goes in: the prompt and all of the answer but its last token
    positions: tuple[int, ...]  # where the answer's tokens are predicted
    targets: tuple[int, ...]  # the tokens wanted there, terminator included


class Task(Protocol):
    """What the engine asks of a task."""

    name: str

    def encode(self, prompt: str, answer: str) -> Encoding:
        """Tokens of a probe. Raises RequestError where they are too many or none."""

    def question(self, prompt: str) -> tuple[int, ...]:
        """Tokens of a prompt alone, to continue from. Raises RequestError."""

    def inputs(self, batch: Sequence[tuple[int, ...]]) -> dict[str, Tensor]:
        """Model inputs of a padded batch of ids; padding changes nothing at real positions."""

    def text(self, answer: Sequence[int]) -> str:
        """The answer that these tokens spell, without its terminator."""


def make_task(
    tokenizer: Any, settings: Mapping[str, Any], context_tokens_max: int | None = None
) -> Task:
    """The task that a store's `[task]` table names, for a tokenizer and a model that reads so many
    tokens at once."""
    from continual.tasks.causal import CausalTask

    known = {CausalTask.name: CausalTask}
    name = settings.get("name", CausalTask.name)
    if name not in known:
        raise CeditError(f"Unknown task {name!r}: [task] name is one of {', '.join(known)}.")
    return known[name](tokenizer, str(settings.get("terminator", "")), Limits(), context_tokens_max)
