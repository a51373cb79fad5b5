"""Pooled states: the mean of a block's outputs over a text.

In a decoder the mean at a token is over all tokens up to it: later ones are not known yet. In an
encoder, where each token sees the whole text, it is over all tokens of the text. Padding never
counts. Means are summed in float64, token by token, so that padding does not change their bits.

A decoder that goes on from its cache shows no earlier tokens. `generate` runs without a cache while
a pooled gate is on; other passes with one are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from continual import hooks
from continual.errors import ModelError


class PassTokens:
    """The positions of the pass under way that are tokens, not padding."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        """[B, T or more] the pass's own mask; None if it has none."""
        self.cached = 0
        """The number of tokens that the pass reads from a cache."""

    @contextmanager
    def followed(self, model: Any) -> Iterator[None]:
        """Look at the arguments of all passes of a model within `with`."""
        name = "attention_mask"
        if model.config.is_encoder_decoder:
            name = "decoder_attention_mask"

        def enter(_: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            mask, cache = kwargs.get(name), kwargs.get("past_key_values")
            self.mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
            self.cached = 0 if cache is None else int(cache.get_seq_length())

        with hooks.entered(model, enter):
            yield

    def real(self, states: Tensor) -> Tensor:
        """Tell for each of the states [B, T, d], as [B, T] bool, whether it is a token's. Raises
        ModelError for a pass that does not show all tokens of its texts."""
        if self.cached:
            raise ModelError(
                f"A pooled gate is on, and a pass reads {self.cached} tokens from a cache: the "
                "gate has to see them. Pass whole texts, with use_cache=False."
            )
        if self.mask is None:
            return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        if self.mask.shape != states.shape[:2]:
            raise ModelError(
                f"A pooled gate is on, and its block shows {tuple(states.shape[:2])} tokens, where "
                f"the attention mask has {tuple(self.mask.shape)}: pass whole texts."
            )
        return self.mask.to(states.device) != 0


def means(states: Tensor, real: Tensor, *, is_whole: bool) -> Tensor:
    """Return the means [B, T, d] float32 of states [B, T, d] over the tokens `real` [B, T] up to
    each position; with `is_whole`, over all tokens of the text."""
    sums = states.double().masked_fill(~real.unsqueeze(-1), 0.0).cumsum(1)
    counts = real.cumsum(1).clamp(min=1).unsqueeze(-1)
    if is_whole:
        sums, counts = sums[:, -1:].expand_as(sums), counts[:, -1:].expand_as(counts)
    return (sums / counts).float()
