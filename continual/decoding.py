"""Greedy decoding as the ledger judges it: the likeliest token of the model's own forward pass.

Transformers' `generate` also obeys a model's directory (penalties, suppressed tokens, sampling,
beams), and for some models it numbers positions otherwise than their forward does. This module
keeps `generate` from the first, and finds and mends the second. It knows no prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from continual.errors import ModelError
from continual.out_of_memory import is_out_of_memory

COMPARED_TOKENS = 3  # the first is read whole, the others through the cache


@contextmanager
def plainly(model: Any) -> Iterator[None]:
    """Make `generate` obey its arguments alone while the `with` lasts: from the settings in the
    model's directory only its special tokens stay."""
    from transformers import GenerationConfig

    directorys = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=directorys.bos_token_id,
        eos_token_id=directorys.eos_token_id,
        pad_token_id=directorys.pad_token_id,
        decoder_start_token_id=directorys.decoder_start_token_id,
    )
    try:
        yield
    finally:
        model.generation_config = directorys


@torch.no_grad()
def options(model: Any, ids: Tensor, pad: int) -> Mapping[str, Any]:
    """Return the options that make `generate` agree with the model's forward: none, if they agree
    already on these ids [1, T]; else one to decode by forward passes alone.

    Raises ModelError if `generate` fails with these, too.
    """
    options_by_forward: Mapping[str, Any] = {"custom_generate": by_forward}
    try:
        if _agrees(model, ids, pad):
            return {}
    except _UNABLE as error:
        if is_out_of_memory(error):
            raise
    try:
        _generated(model, ids, pad, **options_by_forward)
    except _UNABLE as error:
        if is_out_of_memory(error):
            raise
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{type(model).__name__} cannot be asked: transformers' generate fails on it "
            f"({message}). Try another version of transformers."
        ) from error
    return options_by_forward


_UNABLE = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
"""The errors of `generate` on a model that it does not fit."""


def _generated(model: Any, ids: Tensor, pad: int, **told: Any) -> Any:
    with plainly(model):
        model.generation_config.eos_token_id = None
        return type(model).generate(
            model,
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=COMPARED_TOKENS,
            do_sample=False,
            pad_token_id=pad,
            **told,
        )


def _agrees(model: Any, ids: Tensor, pad: int) -> bool:
    """Tell whether each step of `generate` has the logits of a forward pass over all tokens up to
    it."""
    made = _generated(model, ids, pad, output_logits=True, return_dict_in_generate=True)
    whole = model(input_ids=made.sequences[:, :-1], use_cache=False, return_dict=True).logits
    return _is_close(torch.cat(made.logits), whole[0, -len(made.logits) :])


def _is_close(found: Tensor, expected: Tensor) -> bool:
    """Tell whether both differ by rounding only: half of the digits agree."""
    digits = math.sqrt(torch.finfo(expected.dtype).eps)
    return bool((found - expected).abs().max() <= digits * expected.abs().max())


def by_forward(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    **told: Any,
) -> Tensor:
    """Decode ids [B, T] by plain forward passes, without a cache, as the `custom_generate` of
    `generate`. A row that has ended is padded."""
    mask = told.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask  # None: nothing is padding
    running = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    while bool(running.any()):
        scores = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits[:, -1]
        scores = logits_processor(input_ids, scores.float()) if logits_processor else scores
        if generation_config is not None and generation_config.do_sample:
            tokens = torch.multinomial(scores.softmax(-1), 1)[:, 0]
        else:
            tokens = scores.argmax(-1)
        pad = 0 if generation_config is None else generation_config.pad_token_id or 0
        tokens = torch.where(running, tokens, torch.full_like(tokens, pad))
        input_ids = torch.cat([input_ids, tokens[:, None]], 1)
        mask = torch.cat([mask, running[:, None].to(mask)], 1)
        running &= ~stopping_criteria(input_ids, None)
    return input_ids
