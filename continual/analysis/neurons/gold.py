"""Gold tokens: each token of an answer, with the tokens that the model reads before it says it.

An answer of several tokens is taken by teacher forcing: in front of a token stand the prompt and
the gold tokens before it. For a masked model the later tokens of the answer are masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from continual.errors import ModelError, RequestError
from continual.prompts import Prompt
from continual.tasks import Task

LABELS = "classification"


@dataclass(frozen=True)
class GoldToken:
    """One token of an answer, and the place where a model says it."""

    ids: tuple[int, ...]  # for the blocks whose neurons are looked at
    position: int  # among `ids`: where the token is said
    target: int
    source: tuple[int, ...] = ()  # for the encoder, if there is one

    @property
    def is_last(self) -> bool:
        """True if the token is said at the last position."""
        return self.position == len(self.ids) - 1

    def inputs(self, device: torch.device, count: int = 1) -> dict[str, Tensor]:
        """Return the model inputs of `count` copies."""
        ids = torch.tensor([self.ids], device=device).expand(count, -1)
        if not self.source:
            return {"input_ids": ids}
        source = torch.tensor([self.source], device=device).expand(count, -1)
        return {"input_ids": source, "decoder_input_ids": ids}


def require_tokens(task: Task) -> None:
    """Raise ModelError for a task whose answers are no tokens."""
    if task.name == LABELS:
        raise ModelError(
            "Knowledge neurons are looked for where the tokens of an answer are said, and a "
            "classifier gives one label for a whole input: use a causal, seq2seq or masked "
            "language model."
        )


def gold_tokens(task: Task, prompt: Prompt, answer: str) -> tuple[GoldToken, ...]:
    """Return the tokens of an answer behind a prompt, without the ones that end it. Raises
    RequestError for a prompt or an answer that the task refuses, ModelError for a classifier."""
    require_tokens(task)
    encoding = task.encode(prompt, answer)
    question, targets = encoding.question, encoding.targets
    count = len(targets)
    while count > 1 and task.text(targets[: count - 1]) == task.text(targets):
        count -= 1
    return tuple(
        GoldToken((*question.ids, *targets[:number]), place, targets[number], question.source)
        for number, place in enumerate(encoding.positions[:count])
    )


class MaskedPrompts:
    """The prompts of a masked language model: each holds the tokenizer's mask once."""

    def __init__(self, tokenizer: Any, tokens_max: int | None = None) -> None:
        """Take the tokenizer, and the number of tokens that the model reads. Raises ModelError for
        a tokenizer without a mask."""
        if tokenizer.mask_token is None:
            raise ModelError("The tokenizer has no mask: a masked language model's tokenizer does.")
        self._tokenizer, self._tokens_max = tokenizer, tokens_max

    def gold_tokens(self, prompt: str, answer: str) -> tuple[GoldToken, ...]:
        """Return the tokens of an answer in the place of a prompt's mask. Raises RequestError for a
        prompt without one mask, and for an answer that does not fit."""
        mask = self._tokenizer.mask_token
        if prompt.count(mask) != 1:
            raise RequestError(
                f"The prompt {prompt!r} holds {mask} {prompt.count(mask)} times: a prompt for a "
                f"masked language model holds it once, where the answer belongs."
            )
        if not answer.strip():
            raise RequestError(f"The answer to {prompt!r} is empty: give it a text.")
        masked_ids = self._ids(prompt)
        start = masked_ids.index(self._tokenizer.mask_token_id)
        behind = masked_ids[start + 1 :]
        full_ids = self._ids(prompt.replace(mask, answer.strip()))
        end = len(full_ids) - len(behind)
        targets = full_ids[start:end]
        fits = full_ids[:start] == masked_ids[:start] and full_ids[end:] == behind and targets
        if not fits or self._tokenizer.unk_token_id in targets:
            raise RequestError(
                f"The answer {answer!r} to {prompt!r} is not made of tokens that the model knows "
                "and that leave the rest of the prompt as it is: put a blank before the mask, or "
                "take another answer."
            )
        self._require_room(prompt, len(full_ids))
        return tuple(
            self._gold(masked_ids, start, targets, number) for number in range(len(targets))
        )

    @property
    def any_token(self) -> str:
        """A token that fits any mask, to ask what a model says there."""
        return str(self._tokenizer.mask_token)

    def _gold(
        self, masked_ids: Sequence[int], start: int, targets: Sequence[int], number: int
    ) -> GoldToken:
        masks = [self._tokenizer.mask_token_id] * (len(targets) - number)
        ids = (*masked_ids[:start], *targets[:number], *masks, *masked_ids[start + 1 :])
        return GoldToken(ids, start + number, targets[number])

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text)["input_ids"])

    def _require_room(self, prompt: str, count: int) -> None:
        if self._tokens_max is not None and count > self._tokens_max:
            raise RequestError(
                f"The prompt {prompt[:40]!r} and its answer have {count} tokens, more than the "
                f"{self._tokens_max} that the model reads: shorten it."
            )

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()
