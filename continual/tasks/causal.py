"""The causal task: a decoder continues the prompt, and the answer is right when greedy decoding
yields exactly its tokens. One teacher-forced pass decides that: greedy decoding yields the target
if and only if the target token is the arg-max at every one of its positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from continual.errors import RequestError
from continual.requests import Limits
from continual.tasks import Encoding


class CausalTask:
    """Prompt, a space, the answer, and the terminator where the store sets one."""

    name = "causal"

    def __init__(
        self,
        tokenizer: Any,
        terminator: str,
        limits: Limits,
        context_tokens_max: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._terminator = terminator
        self._limits = limits
        self._context_tokens_max = context_tokens_max
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    def encode(self, prompt: str, answer: str) -> Encoding:
        """Tokens of a probe; see `Task.encode`."""
        question = self.question(prompt)
        targets = self._answer_ids(prompt, question, answer)
        if not targets:
            raise RequestError(f"The answer {answer!r} has no tokens: give it a text.")
        if len(targets) > self._limits.target_tokens_max:
            raise RequestError(
                f"The answer {_short(answer)} has {len(targets)} tokens, more than the "
                f"{self._limits.target_tokens_max} allowed: shorten it."
            )
        self._require_context(prompt, len(question) + len(targets) - 1)
        first = len(question) - 1
        return Encoding(
            ids=question + targets[:-1],
            positions=tuple(range(first, first + len(targets))),
            targets=targets,
        )

    def question(self, prompt: str) -> tuple[int, ...]:
        """Tokens of a prompt; see `Task.question`."""
        ids = tuple(self._tokenizer(prompt)["input_ids"])
        if not ids:
            raise RequestError(f"The prompt {prompt!r} has no tokens: give it a text.")
        if len(ids) > self._limits.prompt_tokens_max:
            raise RequestError(
                f"The prompt {_short(prompt)} has {len(ids)} tokens, more than the "
                f"{self._limits.prompt_tokens_max} allowed: shorten it."
            )
        self._require_context(prompt, len(ids))
        return ids

    def _require_context(self, prompt: str, count: int) -> None:
        if self._context_tokens_max is not None and count > self._context_tokens_max:
            raise RequestError(
                f"The prompt {_short(prompt)} and its answer have {count} tokens, more than the "
                f"{self._context_tokens_max} that the model reads: shorten it."
            )

    def inputs(self, batch: Sequence[tuple[int, ...]]) -> dict[str, Tensor]:
        """input_ids and attention_mask [B, T], padded on the right."""
        size = max(len(ids) for ids in batch)
        padded = torch.full((len(batch), size), self._pad)
        mask = torch.zeros(len(batch), size, dtype=torch.long)
        for row, ids in enumerate(batch):
            padded[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        return {"input_ids": padded, "attention_mask": mask}

    def text(self, answer: Sequence[int]) -> str:
        """The words up to the terminator."""
        text: str = self._tokenizer.decode(list(answer), skip_special_tokens=True)
        return text.split(self._terminator)[0].strip() if self._terminator else text.strip()

    def _answer_ids(self, prompt: str, question: tuple[int, ...], answer: str) -> tuple[int, ...]:
        """The answer's tokens behind the prompt: as tokenised together where the prompt's own
        tokens stay the same, else on its own."""
        tail = f"{'' if prompt[-1].isspace() else ' '}{answer}{self._terminator}"
        together = tuple(self._tokenizer(prompt + tail)["input_ids"])
        if together[: len(question)] == question:
            return together[len(question) :]
        return tuple(self._tokenizer(tail, add_special_tokens=False)["input_ids"])


def _short(text: str, characters: int = 40) -> str:
    return repr(text if len(text) <= characters else text[:characters] + "…")
