"""Texts to stand before a prompt, written by the model itself, so that an edit holds in them too.

As in the public code of ROME and MEMIT: short continuations of a few generic words, each token
drawn from the most likely ones, closed by a full stop. The empty text is always the first of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from continual.passes.partial import logits_of
from continual.task_model import TaskModel
from continual.tasks import Encoding, Question

STARTS = ("The", "Therefore", "Because", "I", "You")
LIKELIEST = 5
"""The number of likeliest tokens that a token is drawn from."""


def write_contexts(
    task_model: TaskModel, count: int, tokens: int, generator: torch.Generator
) -> tuple[str, ...]:
    """Return the empty text, then `count` others: each a generic word and about `tokens` tokens
    more.

    If the tokenizer knows none of the generic words, a token drawn from the vocabulary begins each
    text. Contexts end at the model's limit of tokens; the prompt behind one may still not fit.
    """
    if count == 0:
        return ("",)
    tokenizer = task_model.edited.tokenizer
    rows = [_start(task_model, number, generator) for number in range(count)]
    room = task_model.edited.base.context_tokens_max
    for _ in range(tokens):
        if room is None or max(map(len, rows)) < room:
            rows = _longer(task_model, rows, generator)
    return ("", *[_closed(tokenizer, row) for row in rows])


def _start(task_model: TaskModel, number: int, generator: torch.Generator) -> list[int]:
    """Return the tokens of a generic word, or one drawn from the vocabulary."""
    tokenizer = task_model.edited.tokenizer
    starts = [ids for word in STARTS if (ids := _ids(tokenizer, word))]
    if starts:
        return starts[number % len(starts)]
    size = len(task_model.edited.model.get_input_embeddings().weight)
    token_ids = [i for i in range(size) if i not in tokenizer.all_special_ids]
    choice = torch.randint(len(token_ids), (1,), generator=generator).item()
    return [token_ids[int(choice)]]


def _ids(tokenizer: Any, word: str) -> list[int]:
    """Return the tokens of a word; none if the tokenizer does not know it."""
    ids: list[int] = tokenizer(word, add_special_tokens=False)["input_ids"]
    return [] if set(ids) & {tokenizer.unk_token_id} else ids


@torch.no_grad()
def _longer(
    task_model: TaskModel, rows: Sequence[list[int]], generator: torch.Generator
) -> list[list[int]]:
    """Return the rows, each one token longer."""
    inputs = task_model.inputs([Encoding(Question(tuple(row)), (), ()) for row in rows])
    logits = logits_of(task_model.edited.model, inputs)
    ends = [len(row) - 1 for row in rows]
    tokens = _draw(logits[range(len(rows)), ends], task_model.edited.tokenizer, generator)
    return [[*row, token] for row, token in zip(rows, tokens, strict=True)]


def _draw(logits: Tensor, tokenizer: Any, generator: torch.Generator) -> list[int]:
    """Draw one of the LIKELIEST tokens for each row [n, vocab], never a special token."""
    scores = logits.float().cpu()
    scores[:, tokenizer.all_special_ids] = -torch.inf
    candidates = scores.topk(min(LIKELIEST, scores.shape[1]), dim=1)
    picks = torch.multinomial(candidates.values.softmax(1), 1, generator=generator)
    tokens: list[int] = candidates.indices.gather(1, picks).flatten().tolist()
    return tokens


def _closed(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of some tokens, closed by a full stop and a space."""
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    ).strip()
    return f"{text}. " if _ids(tokenizer, f"{text}.") else f"{text} . "  # it is a separate word
