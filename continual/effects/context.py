"""The context of a query: the mean of an inner block's FFN inputs over the latest tokens.

At the last block a token's state says which token comes next, and little about the text that led
there: two questions about one subject look nearly alike, above all at the end of a chat turn. The
FFN inputs of an inner block, averaged over the latest tokens, say what the text is about. So a
query with context is

    q = x / rms(x) + WEIGHT · T c / rms(c)

where x is the last FFN's input at the token, c the mean, and T a fixed permutation of the
coordinates with signs, which keeps the two apart in the model's own width. Means are differences of
running sums in float64, so that padding does not change their bits.

At the end of a chat turn many of the latest tokens are the template's own. A *topic* is a shorter
context that leaves out the tokens between a user's turn and the answer, as far as a text has them
in their order: then it says what was asked.

Knows tensors and masks, and how the sums go on from a cache; leaves hooks to its callers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from continual.errors import ModelError

TOKENS, TOPIC_TOKENS = 32, 8
"""The number of tokens, the latest one among them, that a context and a topic are the mean of."""
WEIGHT = 2.0
"""The length of the context, where the query's own is 1."""


@dataclass(frozen=True)
class Window:
    """The tokens that a mean is taken over: the latest ones that count."""

    turn: tuple[int, ...] | None = None
    """The tokens between a user's turn and the answer, which do not count in a topic; None for a
    context, in which all tokens count."""

    @property
    def tokens(self) -> int:
        """The number of tokens of a mean, at most."""
        return TOKENS if self.turn is None else TOPIC_TOKENS

    def counted(self, mask: Tensor | None, tokens: Tensor | None) -> Tensor | None:
        """Return the mask [B, T] of the tokens [B, T] that count, 0 for the others; None if all do.
        `mask` [B, T] is 0 for padding; tokens that are not known all count."""
        if not self.turn or tokens is None:
            return mask
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask != 0
        return real & ~_of_turn(tokens.masked_fill(~real, -1), self.turn)


def _of_turn(tokens: Tensor, turn: tuple[int, ...]) -> Tensor:
    """Tell which tokens [B, T] stand where `turn` begins, each behind the ones before it there →
    [B, T] bool. Later tokens have no say, so that it holds in a pass that ends earlier, too."""
    found = run = tokens == turn[0]
    for token in turn[1:]:
        run = pad(run, (1, 0))[:, :-1] & (tokens == token)
        found = found | run
    return found


@dataclass(frozen=True)
class Context:
    """The context of the queries of a running model."""

    module: nn.Module  # its input is averaged
    means: Callable[[Tensor], Tensor]  # states [B, T, d] of the pass under way → their means


def with_context(query: Tensor, context: Tensor) -> Tensor:
    """Join queries [.., d] with their contexts, as many rows of [.., d] → [.., d] float32."""
    order, signs = (part.to(context.device) for part in turning(context.shape[-1]))
    beside = _normed(context)[..., order] * signs
    return _normed(query) + WEIGHT * beside.view(query.shape)


@cache
def turning(width: int) -> tuple[Tensor, Tensor]:
    """Return the permutation [d] of coordinates and their signs [d] float32. They are drawn by a
    generator of their own: stored keys depend on each of them."""
    order, signs, state = list(range(width)), [1.0] * width, 1
    for last in range(width - 1, -1, -1):  # Fisher and Yates
        state = (1103515245 * state + 12345) % 2**31
        drawn = (state >> 8) % (last + 1)
        order[last], order[drawn] = order[drawn], order[last]
        signs[last] = 1.0 if state >> 30 else -1.0
    with torch.inference_mode(False):  # they are used in passes with gradients, too
        return torch.tensor(order), torch.tensor(signs)


def _normed(states: Tensor) -> Tensor:
    wide = states.double()
    square = wide.square().mean(-1, keepdim=True)
    return (wide * torch.rsqrt(square + torch.finfo(torch.float32).tiny)).float()


@dataclass(frozen=True)
class Sums:
    """Running sums of states and of tokens up to each of the latest tokens of some sequences."""

    states: Tensor  # [B, n, d] float64
    tokens: Tensor  # [B, n, 1] float64: the number of tokens that count

    def at(self, counts: Tensor) -> Sums:
        """Return the sums up to where so many tokens [B, m] have been counted; zero for none. A sum
        behind the last of them differs from it by tokens that do not count, by nothing."""
        known = self.tokens[..., 0].contiguous()
        places = torch.searchsorted(known, counts.contiguous(), right=True).unsqueeze(-1)
        sums = [pad(part, (0, 0, 1, 0)) for part in (self.states, self.tokens)]
        return Sums(*(part.gather(1, places.expand(-1, -1, part.shape[-1])) for part in sums))

    def tail(self, window: Window) -> Sums:
        """Return the sums that later tokens need."""
        back = torch.arange(window.tokens, -1, -1, device=self.tokens.device)
        return self.at(self.tokens[:, -1] - back)

    def __getitem__(self, sequences: Tensor) -> Sums:
        return Sums(self.states[sequences], self.tokens[sequences])

    def followed_by(self, later: Sums) -> Sums:
        """Return these sums and the ones of the tokens behind them."""
        states = torch.cat([self.states, later.states + self.states[:, -1:]], 1)
        return Sums(states, torch.cat([self.tokens, later.tokens + self.tokens[:, -1:]], 1))


def sums_of(states: Tensor, mask: Tensor | None) -> Sums:
    """Return the running sums of states [B, T, d]; `mask` [B, T] is 0 for tokens that do not count,
    None if all do."""
    wide = states.double()
    real = torch.ones_like(wide[..., :1]) if mask is None else (mask != 0).to(wide).unsqueeze(-1)
    return Sums((wide * real).cumsum(1), real.cumsum(1))


def means_of(sums: Sums, window: Window) -> Tensor:
    """Return the means [B, n, d] float32 over the latest tokens of a window up to each token."""
    earlier = sums.at(sums.tokens[..., 0] - window.tokens)
    states, tokens = sums.states - earlier.states, sums.tokens - earlier.tokens
    return (states / tokens.clamp(min=1.0)).float()


class RunningMeans:
    """The means of the passes of a running model, which may go on from a cache.

    A sequence that goes on is found by its tokens, so that a search may drop and double sequences.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self._read: Tensor | None = None  # [B, L] tokens up to the end of the latest pass
        self._sums: Sums | None = None

    def of(self, states: Tensor, mask: Tensor | None, read: Tensor | None, cached: int) -> Tensor:
        """Return the means [B, T, d] at the tokens of a pass.

        `states` [B, T, d] are its states, or flat rows of them, `mask` [B, T or more] its attention
        mask, `read` [B, L] all tokens that it has read, `cached` the number of them in its cache.
        Raises ModelError if the tokens in the cache were read elsewhere.
        """
        if states.ndim == 2:  # some blocks give their FFN flat rows
            known = mask if read is None else read
            states = states.view(1 if known is None else len(known), -1, states.shape[-1])
        fresh = states.shape[1]
        counted = self._window.counted(*_alongside(mask, read))
        sums = sums_of(states, None if counted is None else counted[:, -fresh:].to(states.device))
        if cached:
            sums = self._before(read, cached, fresh).followed_by(sums)
        means = means_of(sums, self._window)[:, -fresh:]
        self._read, self._sums = read, sums.tail(self._window)
        return means

    def _before(self, read: Tensor | None, cached: int, fresh: int) -> Sums:
        """Return the sums up to the end of the cache, for the sequences of this pass."""
        known = self._read
        if read is not None and known is not None and self._sums is not None:
            ahead = read[:, : read.shape[1] - fresh]
            if known.shape[1] == ahead.shape[1] == cached:
                alike = (ahead[:, None] == known[None]).all(-1)  # [B, known B]
                if bool(alike.any(1).all()):
                    return self._sums[alike.int().argmax(1)]
        raise ModelError(
            f"A pass goes on from {cached} tokens in a cache that this model has not read: gates "
            "with a context have to see them. Pass whole texts, with use_cache=False."
        )


def _alongside(mask: Tensor | None, read: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return a mask [B, T or more] and the tokens [B, L] read, both as long as the shorter one."""
    if mask is None or read is None:
        return mask, read
    length = min(mask.shape[1], read.shape[1])
    return mask[:, -length:].to(read.device), read[:, -length:]
