"""Lets a model write texts: it continues each start with its likeliest tokens, or sampled ones.

Knows starts and tokens; leaves the choice of starts to `general` and `neighbours`. Ignores a
model's own generation settings (temperature, penalties).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from continual import decoding
from continual.model import EditedModel
from continual.passes.batching import by_length

BATCH_TOKENS_MAX = 2048
"""Tokens of one batch, with the tokens still to be written."""


@torch.no_grad()
def continued(
    edited: EditedModel, starts: Sequence[tuple[int, ...]], tokens: int, *, seed: int | None = None
) -> list[tuple[int, ...]]:
    """Continue each start by up to `tokens` tokens, without the model's memory of records.

    A continuation ends early behind a token that ends a text. With a seed the tokens are sampled at
    temperature 1, otherwise they are the likeliest ones; the same starts, seed and machine give the
    same tokens.
    """
    lengths = [len(start) + tokens for start in starts]
    results: dict[int, tuple[int, ...]] = {}
    devices = [edited.device] if edited.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        for batch in by_length(lengths, BATCH_TOKENS_MAX):
            continuations = _generated(edited, [starts[i] for i in batch], tokens, seed is not None)
            results.update(zip(batch, continuations, strict=True))
    return [results[i] for i in range(len(starts))]


def _generated(
    edited: EditedModel, starts: Sequence[tuple[int, ...]], tokens: int, sampled: bool
) -> list[tuple[int, ...]]:
    """Generate one batch, padded on the left."""
    pad, size = edited.base.pad, max(map(len, starts))
    ids = torch.tensor([[pad] * (size - len(start)) + list(start) for start in starts])
    mask = torch.tensor([[0] * (size - len(start)) + [1] * len(start) for start in starts])
    ends = text_ends(edited)
    model = edited.model
    with decoding.plainly(model):
        outputs = type(model).generate(
            model,
            input_ids=ids.to(edited.device),
            attention_mask=mask.to(edited.device),
            max_new_tokens=tokens,
            do_sample=sampled,
            top_k=0 if sampled else None,
            pad_token_id=pad,
            eos_token_id=list(ends) or None,
            bos_token_id=edited.tokenizer.bos_token_id,
            **edited.decoding,
        )
    return [_ended(row, ends) for row in outputs[:, size:].tolist()]


def text_ends(edited: EditedModel) -> frozenset[int]:
    """Return the tokens that end a text by the model's generation settings and its tokenizer; a
    token that begins or pads a text ends the text before it, too."""
    eos = getattr(edited.model.generation_config, "eos_token_id", None)
    eos_ids = list(eos) if isinstance(eos, list | tuple) else [eos]
    tokenizer = edited.tokenizer
    mark_ids = tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id
    return frozenset(int(token) for token in (*eos_ids, *mark_ids) if token is not None)


def _ended(row: Sequence[int], ends: frozenset[int]) -> tuple[int, ...]:
    """Return the tokens up to and including the first that ends a text."""
    end = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
    return tuple(row[: end + 1])
