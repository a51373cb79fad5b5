"""Follows the text that a model has read up to a position, and tells whether it names a subject.

A neuron may ask for a subject: it stays silent wherever the text up to there does not name it. The
text of a row comes from the probe that the row belongs to, or from the tokens of a running model.
Knows tokens and texts; leaves comparing texts to `naming`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from continual import hooks
from continual.naming import names
from continual.picture_marks import marked, without_marks
from continual.prompts import normalised

Decode = Callable[[tuple[int, ...]], str]
Prefix = tuple[tuple[int, ...], int]  # tokens, and the number of them that were read

TEXTS_REMEMBERED = 4096


def decoder(tokenizer: Any) -> Decode:
    """Return a function from tokens to normalised text; it remembers the latest texts."""

    @lru_cache(TEXTS_REMEMBERED)
    def decode(ids: tuple[int, ...]) -> str:
        return normalised(marked(tokenizer, ids, clean_up_tokenization_spaces=False))

    return decode


@dataclass(frozen=True)
class RowTexts:
    """The text read up to each of some rows."""

    decode: Decode
    prefixes: Sequence[Prefix]

    def __len__(self) -> int:
        return len(self.prefixes)

    def __getitem__(self, row: int) -> str:
        ids, count = self.prefixes[row]
        return self.decode(ids[:count])

    def take(self, index: Tensor | slice) -> RowTexts:
        """Return the texts of some rows."""
        if isinstance(index, slice):
            return RowTexts(self.decode, self.prefixes[index])
        places = index.nonzero().flatten() if index.dtype == torch.bool else index.flatten()
        return RowTexts(self.decode, [self.prefixes[place] for place in places.tolist()])

    @classmethod
    def join(cls, parts: Sequence[RowTexts | None]) -> RowTexts | None:
        """Join the texts, one after another; None if one of them is not known."""
        known_parts = [part for part in parts if part is not None]
        if len(known_parts) < len(parts) or not known_parts:
            return None
        return cls(
            known_parts[0].decode, [prefix for part in known_parts for prefix in part.prefixes]
        )


class RunningText:
    """The tokens that a running model has read, sequence by sequence.

    Within `generate` all tokens are known at every step. Without it a forward pass has all of its
    tokens, or goes on from the pass before by its cache. Tokens without a known connection count as
    the beginning of a text, so that a subject read before them does not count.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._whole: Tensor | None = None  # [B, L] as `generate` is about to give them
        self._read: Tensor | None = None  # [B, L] of the latest pass
        self._fresh = 0  # the number of these that this pass reads

    @property
    def read(self) -> Tensor | None:
        """The tokens [B, L] read up to the end of the latest pass; None if they are not known."""
        return self._read

    def texts(self, rows: int) -> RowTexts | None:
        """Return the text read up to each row of the current pass, [B · T] of them; None if `rows`
        is another number."""
        read = self._read
        if read is None or rows != read.shape[0] * self._fresh:
            return None
        start = read.shape[1] - self._fresh
        return RowTexts(
            self._decode,
            [
                (tuple(sequence), start + place + 1)
                for sequence in read.tolist()
                for place in range(self._fresh)
            ],
        )

    @contextmanager
    def followed(self, model: Any) -> Iterator[None]:
        """Follow the tokens of all passes of a model while the `with` lasts."""
        prepare = model.prepare_inputs_for_generation

        def prepared(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._whole = input_ids
            return prepare(input_ids, *args, **kwargs)

        with ExitStack() as stack:
            stack.enter_context(hooks.standing_in(model, "prepare_inputs_for_generation", prepared))
            stack.enter_context(hooks.entered(model, self._enter))
            stack.enter_context(hooks.watched({0: model}, lambda _key, _call: self._leave()))
            yield

    def _leave(self) -> None:
        """End a forward pass: parts of the model that are called by themselves read no text."""
        self._fresh = 0

    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the tokens of a forward pass as it begins."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        whole, self._whole = self._whole, None
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            self._read = None
            return
        self._fresh = ids.shape[1]
        if whole is not None and torch.equal(whole[:, -self._fresh :], ids):
            self._read = whole
        elif (
            self._read is not None
            and _length(kwargs.get("past_key_values")) == (self._read.shape[1])
        ):
            self._read = torch.cat([self._read, ids], 1) if len(ids) == len(self._read) else ids
        else:
            self._read = ids


def _length(cache: Any) -> int:
    """Return the number of tokens that a cache holds; 0 for none."""
    return 0 if cache is None else int(cache.get_seq_length())


def named_in(texts: RowTexts | None, rows: Iterable[int], subject: str) -> list[bool]:
    """Tell for each of these rows whether its text names a subject. Raises ValueError for rows
    without a known text."""
    if texts is None:
        raise ValueError(
            "Rows without their texts: a neuron asks for its subject in what the model reads. Call "
            "the whole model, with input_ids."
        )
    return [names(without_marks(texts[row]), subject) for row in rows]
