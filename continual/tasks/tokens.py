"""Reads texts as tokens within limits, and pads batches of them, for all tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from continual.errors import ContextExceeded, RequestError
from continual.picture_marks import text_ids
from continual.pictures.album import require_none
from continual.prompts import Chat, Prompt
from continual.requests import Limits
from continual.tasks.joining import is_in_place

if TYPE_CHECKING:
    from continual.base import PretrainedBase


@dataclass(frozen=True)
class PromptReader:
    """A tokenizer, and the limits on prompts and answers."""

    base: PretrainedBase
    limits: Limits
    pad: int  # the token behind a shorter sequence of a batch
    is_in_place: bool = True  # texts to the letter; else without their outer whitespace

    @classmethod
    def of(cls, base: PretrainedBase, settings: Mapping[str, Any], limits: Limits) -> PromptReader:
        """Make the reader of a base model, by the store's `[task]` table."""
        return cls(base, limits, base.pad, is_in_place(settings))

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        return self.base.tokenizer

    @property
    def context_tokens_max(self) -> int | None:
        """The number of tokens that the model reads at once; None if unknown."""
        return self.base.context_tokens_max

    def literal(self, text: str) -> str:
        """Return a prompt or an answer in the form that the store takes: to the letter, or without
        outer whitespace."""
        return text if self.is_in_place else text.strip()

    def text(self, prompt: Prompt) -> str:
        """Return a prompt that is a text. Raises RequestError for a chat."""
        if isinstance(prompt, Chat):
            raise RequestError(
                "messages are for models that go on with a text (the causal task): give the prompt "
                "as a text"
            )
        return self.literal(prompt)

    def prompt(self, prompt: str, *, is_whole: bool = False, ends: bool = True) -> tuple[int, ...]:
        """Return the tokens of a prompt; see `ids`. Raises RequestError for none, for too many, for
        bytes that are no text, and for tokens that the model does not know."""
        _require_text(prompt)
        self._require_characters("prompt", prompt)
        ids = self.ids(prompt, is_whole=is_whole, ends=ends)
        if not ids:
            raise RequestError(f"The prompt {prompt!r} has no tokens: give it a text.")
        self._require_few("prompt", prompt, len(text_ids(ids)))
        self._require_known(prompt, ids)
        self.require_context(prompt, len(ids))
        return ids

    def opening(self, prompt: str, *, is_whole: bool = False, ends: bool = True) -> tuple[int, ...]:
        """Return the tokens of a prompt of any length, if at least one more fits the model. Raises
        RequestError as `prompt` does, but for the store's limits."""
        _require_text(prompt)
        ids = self.ids(prompt, is_whole=is_whole, ends=ends)
        if not ids:
            raise RequestError(f"The prompt {prompt!r} has no tokens: give it a text.")
        self._require_known(prompt, ids)
        self.require_context(prompt, len(ids) + 1)
        return ids

    def ids(self, text: str, *, is_whole: bool = False, ends: bool = True) -> tuple[int, ...]:
        """Return the tokens of a text. A text that `is_whole` contains its special tokens, and gets
        no others; with `ends` it keeps the tokens that the tokenizer puts behind a text. Raises
        RequestError for a text that shows a picture."""
        require_none(text)
        ids = tuple(self.tokenizer(text, add_special_tokens=not is_whole)["input_ids"])
        suffix = () if is_whole or ends else self._around[1]
        return ids[: -len(suffix)] if suffix and ids[-len(suffix) :] == suffix else ids

    def words(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without special ones and without outer whitespace."""
        text = self._spelled(ids, skip_special_tokens=True)
        return text.strip()

    def letters(self, ids: Sequence[int]) -> str:
        """Return the text of tokens to the letter, without the tokens that the tokenizer puts
        around it."""
        prefix, suffix = self._around
        body = list(ids)
        if prefix and body[: len(prefix)] == list(prefix):
            body = body[len(prefix) :]
        if suffix and body[-len(suffix) :] == list(suffix):
            body = body[: -len(suffix)]
        return self._spelled(body)

    def _spelled(self, ids: Sequence[int], **options: Any) -> str:
        """Return the text of tokens; `options` are of the tokenizer's `decode`."""
        text: str = self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False, **options)
        return text

    @cached_property
    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens that the tokenizer puts in front of a text, and behind it."""
        all_ids = tuple(self.tokenizer("a")["input_ids"])
        text_ids = tuple(self.tokenizer("a", add_special_tokens=False)["input_ids"])
        for start in range(len(all_ids) - len(text_ids) + 1 if text_ids else 0):
            if all_ids[start : start + len(text_ids)] == text_ids:
                return all_ids[:start], all_ids[start + len(text_ids) :]
        return (), ()

    def require_answer(self, answer: str, targets: Sequence[int]) -> None:
        """Raise RequestError for an answer with no tokens, too many, or unknown ones."""
        self._require_characters("target", answer)
        if not targets:
            raise RequestError(f"The answer {answer!r} has no tokens: give it a text.")
        self._require_few("target", answer, len(targets))
        self._require_known(answer, targets)

    def _require_characters(self, kind: str, text: str) -> None:
        """Raise RequestError for a text that is longer than the store allows."""
        limit = getattr(self.limits, f"{kind}_characters_max")
        if len(text) > limit:
            raise RequestError(
                f"The {_NOUNS[kind]} {_short(text)} has {len(text)} characters, more than the "
                f"{limit} allowed: shorten it, or raise {kind}_characters_max under [task] in "
                "cedit.toml."
            )

    def _require_few(self, kind: str, text: str, count: int) -> None:
        """Raise RequestError for more tokens than the store allows."""
        limit = getattr(self.limits, f"{kind}_tokens_max")
        if count > limit:
            raise RequestError(
                f"The {_NOUNS[kind]} {_short(text)} has {count} tokens, more than the {limit} "
                f"allowed: shorten it, or raise {kind}_tokens_max under [task] in cedit.toml."
            )

    def _require_known(self, text: str, ids: Sequence[int]) -> None:
        """Raise RequestError for tokens that the tokenizer names and the model has no embedding
        for."""
        if (token := self.base.unknown_token(text_ids(ids))) is not None:
            raise RequestError(
                f"The model does not know the token {token!r} in {_short(text)}: the tokenizer "
                "names more than the model's embeddings hold."
            )

    def require_context(self, prompt: str, count: int) -> None:
        """Raise ContextExceeded for a prompt and answer with more tokens than the model reads."""
        if self.context_tokens_max is not None and count > self.context_tokens_max:
            raise ContextExceeded(
                f"The prompt {_short(prompt)} and its answer have {count} tokens, more than the "
                f"{self.context_tokens_max} that the model reads: shorten it."
            )


_NOUNS = {"prompt": "prompt", "target": "answer"}


def padded(batch: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Return input_ids [B, T] of sequences, padded on the right, and, if one is padded,
    attention_mask [B, T]."""
    pad_counts = [0] * len(batch)
    if len(batch) > 1:
        size = max(map(len, batch))
        pad_counts = [size - len(ids) for ids in batch]
    if not any(pad_counts):
        return {"input_ids": torch.tensor(batch)}
    ids = [[*ids, *[pad] * count] for ids, count in zip(batch, pad_counts, strict=True)]
    mask = [[1] * len(ids) + [0] * count for ids, count in zip(batch, pad_counts, strict=True)]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def _require_text(prompt: str) -> None:
    """Raise RequestError for bytes of a command line that are not UTF-8: Python passes them on."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(f"The prompt {prompt!a} is no text: write it in UTF-8.") from None


def _short(text: str, characters: int = 40) -> str:
    return repr(text if len(text) <= characters else text[:characters] + "…")
