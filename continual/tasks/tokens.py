"""What the tasks share: texts as tokens within limits, and batches of them padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from continual.errors import RequestError
from continual.requests import Limits

if TYPE_CHECKING:
    from continual.base import BaseModel


@dataclass(frozen=True)
class Reader:
    """A tokenizer, and how much of a prompt and of an answer it may read."""

    base: BaseModel
    limits: Limits
    pad: int  # the token behind a shorter sequence of a batch

    @classmethod
    def of(cls, base: BaseModel, limits: Limits) -> Reader:
        """The reader of a base model."""
        return cls(base, limits, base.pad)

    @property
    def tokenizer(self) -> Any:
        """The base model's."""
        return self.base.tokenizer

    @property
    def context_tokens_max(self) -> int | None:
        """What the model reads at once."""
        return self.base.context_tokens_max

    def prompt(self, prompt: str) -> tuple[int, ...]:
        """Tokens of a prompt. Raises RequestError for none, too many, what is no text, and what the
        model does not know."""
        _require_text(prompt)
        ids = tuple(self.tokenizer(prompt)["input_ids"])
        if not ids:
            raise RequestError(f"The prompt {prompt!r} has no tokens: give it a text.")
        if len(ids) > self.limits.prompt_tokens_max:
            raise RequestError(
                f"The prompt {_short(prompt)} has {len(ids)} tokens, more than the "
                f"{self.limits.prompt_tokens_max} allowed: shorten it."
            )
        self._require_known(prompt, ids)
        self.require_context(prompt, len(ids))
        return ids

    def require_answer(self, answer: str, targets: Sequence[int]) -> None:
        """Raises RequestError where an answer's tokens are none, too many, or not the model's."""
        if not targets:
            raise RequestError(f"The answer {answer!r} has no tokens: give it a text.")
        if len(targets) > self.limits.target_tokens_max:
            raise RequestError(
                f"The answer {_short(answer)} has {len(targets)} tokens, more than the "
                f"{self.limits.target_tokens_max} allowed: shorten it."
            )
        self._require_known(answer, targets)

    def _require_known(self, text: str, ids: Sequence[int]) -> None:
        """Raises RequestError for tokens that the tokenizer names and the model has no embedding
        for."""
        if (token := self.base.unknown_token(ids)) is not None:
            raise RequestError(
                f"The model does not know the token {token!r} in {_short(text)}: the tokenizer "
                "names more than the model's embeddings hold."
            )

    def require_context(self, prompt: str, count: int) -> None:
        """Raises RequestError where a prompt and its answer are more than the model reads."""
        if self.context_tokens_max is not None and count > self.context_tokens_max:
            raise RequestError(
                f"The prompt {_short(prompt)} and its answer have {count} tokens, more than the "
                f"{self.context_tokens_max} that the model reads: shorten it."
            )


def padded(batch: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """input_ids [B, T] of sequences, padded on the right; attention_mask where one is padded."""
    missing = [0] * len(batch)
    if len(batch) > 1:
        size = max(map(len, batch))
        missing = [size - len(ids) for ids in batch]
    if not any(missing):
        return {"input_ids": torch.tensor(batch)}
    ids = [[*ids, *[pad] * count] for ids, count in zip(batch, missing, strict=True)]
    mask = [[1] * len(ids) + [0] * count for ids, count in zip(batch, missing, strict=True)]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def _require_text(prompt: str) -> None:
    """Raises RequestError for bytes of a command line that are not UTF-8: Python passes them on."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(f"The prompt {prompt!a} is no text: write it in UTF-8.") from None


def _short(text: str, characters: int = 40) -> str:
    return repr(text if len(text) <= characters else text[:characters] + "…")
