"""Sequences one behind another in a single row, and the attention among the tokens of each.

All else in a block works token by token: nothing that is padding has to go through it. Attention
alone knows of sequences. It takes those of like lengths side by side, padded, and the keys and
values of all that comes before a sequence's tokens as they were kept.

Scaled dot-product attention as transformers' models ask for it: with groups of heads on one key,
with a window, causal. Knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from continual.passes.batching import by_length


@dataclass(frozen=True)
class Lengths:
    """Of some sequences: the tokens in the row, and those before them, which are kept."""

    sizes: tuple[int, ...]
    before: tuple[int, ...]


GROUP_TOKENS_MAX = 32_768  # side by side, with padding
ROWS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""The lengths that a row comes in. A CPU's library makes a product of each size ready anew, which
takes longer than the product of a few rows does, and ends have other sizes whenever some leave."""
ROWS_MAX = ROWS[-1]


def filled_up(rows: int) -> int:
    """So many rows, or the next of the lengths that they come in."""
    if rows > ROWS_MAX:
        return -(-rows // 256) * 256
    return next(size for size in ROWS if size >= rows)


class Group:
    """Sequences of like lengths: a stretch of the row, and side by side for attention."""

    def __init__(
        self, first: int, sizes: Tensor, before: Tensor, nowhere: int, device: torch.device
    ) -> None:
        """`nowhere`: the place in the row of a token that belongs to no sequence."""
        self.first, self.rows = first, int(sizes.sum())
        self.count, self.size, self.room = len(sizes), int(sizes.max()), int(before.max())
        self._before = before.to(device)
        self._masks: dict[int | None, Tensor] = {}
        inside = (torch.arange(self.size) < sizes[:, None]).flatten()
        self._is_full = self.rows == len(inside)
        places = inside.nonzero().squeeze(1)
        sources = torch.full_like(inside, nowhere, dtype=torch.long)
        sources[places] = torch.arange(first, first + self.rows)
        self._places = places.to(device)  # of the row's tokens, side by side
        self._sources = sources.to(device)  # of what is side by side, in the row

    @property
    def stretch(self) -> slice:
        """Its tokens in the row."""
        return slice(self.first, self.first + self.rows)

    def side_by_side(self, row: Tensor) -> Tensor:
        """[count, heads, size, d] of a row's [N, heads, d]; what belongs to no sequence where there
        is no token."""
        found = row[self.stretch] if self._is_full else row.index_select(0, self._sources)
        return found.view(self.count, self.size, *found.shape[1:]).transpose(1, 2)

    def room_behind(self, before: Tensor) -> Tensor:
        """[count, heads, room + size, d] of what is before the tokens, [count, room, heads, d]."""
        count, _, heads, width = before.shape
        whole = before.new_empty(count, heads, self.room + self.size, width)
        whole[:, :, : self.room] = before.transpose(1, 2)
        return whole

    def put(self, row: Tensor, found: Tensor) -> None:
        """Write [count, heads, size, d] to a row [N, heads, d]."""
        into, found = row[self.stretch], found.transpose(1, 2)
        if self._is_full:
            into.view(found.shape).copy_(found)
        else:
            torch.index_select(found.flatten(0, 1), 0, self._places, out=into)

    def mask(self, window: int | None) -> Tensor:
        """[count, 1, 1, size, room + size] what is added to scores: -inf for what a token does not
        look at, zero else."""
        if window not in self._masks:
            device = self._before.device
            query = torch.arange(self.size, device=device)[:, None]
            key = torch.arange(-self.room, self.size, device=device)
            seen = (key <= query) & (key >= -self._before[:, None, None])
            if window is not None:
                seen = seen & (query - key < window)
            hidden = torch.zeros(seen.shape, device=device).masked_fill_(~seen, -math.inf)
            self._masks[window] = hidden[:, None, None]
        return self._masks[window]


class Packing:
    """Where the tokens of some sequences stand in one row, which is filled up with others that
    belong to none: what is padding to attention is read from the last of them."""

    def __init__(
        self, lengths: Lengths, groups: Sequence[Sequence[int]], device: torch.device
    ) -> None:
        self.lengths, self._members, self._device = lengths, groups, device
        sizes, before = torch.tensor(lengths.sizes), torch.tensor(lengths.before)
        self.groups: list[Group] = []
        self._firsts = torch.empty_like(sizes)
        self.rows = sum(lengths.sizes)
        self.width = filled_up(self.rows + 1)
        total = 0
        for members in groups:
            chosen = torch.tensor(members)
            group = Group(total, sizes[chosen], before[chosen], self.width - 1, device)
            self._firsts[chosen] = total + sizes[chosen].cumsum(0) - sizes[chosen]
            total += group.rows
            self.groups.append(group)
        self.order = [sequence for members in groups for sequence in members]
        self._begin = self._firsts.to(device)

    @classmethod
    def of(cls, lengths: Lengths, padded_max: float, device: torch.device) -> Packing:
        """In groups of like lengths: the longest is at most so many times the shortest."""
        return cls(lengths, by_length(lengths.sizes, GROUP_TOKENS_MAX, padded_max), device)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """[N, ..] for what is to be put in for all sequences; zero for what belongs to none."""
        found = torch.empty(*shape, dtype=dtype, device=self._device)
        found[self.rows :] = 0
        return found

    def row(self, sequences: Tensor, positions: Tensor) -> Tensor:
        """Where tokens stand, by their sequences and their positions among its own tokens."""
        return self._begin[sequences] + positions

    def tokens(self, firsts: Tensor) -> Tensor:
        """[N] where the row's tokens stand elsewhere, when those of each sequence begin there (on
        the CPU); the first place for those that belong to none."""
        order = torch.tensor(self.order)
        sizes = torch.tensor(self.lengths.sizes)[order]
        places = torch.zeros(self.width, dtype=torch.long)
        shifts = torch.repeat_interleave(firsts[order] - self._firsts[order], sizes)
        places[: self.rows] = shifts + torch.arange(self.rows)
        return places.to(self._device)

    def select(self, chosen: Sequence[int]) -> tuple[Packing, list[list[int]]]:
        """The packing of some of the sequences, and which members of each group they are: groups
        without any are gone."""
        number = {sequence: i for i, sequence in enumerate(chosen)}
        kept = [[i for i, s in enumerate(some) if s in number] for some in self._members]
        groups = [
            [number[some[i]] for i in places]
            for some, places in zip(self._members, kept, strict=True)
            if places
        ]
        lengths = Lengths(
            tuple(self.lengths.sizes[i] for i in chosen),
            tuple(self.lengths.before[i] for i in chosen),
        )
        return Packing(lengths, groups, self._device), kept

    def members(self) -> Iterator[tuple[Group, Tensor]]:
        """The groups, each with its sequences, on the CPU."""
        for group, some in zip(self.groups, self._members, strict=True):
            yield group, torch.tensor(some)

    def firsts(self, chosen: Sequence[int]) -> Tensor:
        """Where some of the sequences begin in the row, on the CPU."""
        return self._firsts[torch.tensor(chosen)]


@dataclass(frozen=True)
class Kept:
    """Keys and values [count, heads, room + size, d] of one group: first those before its tokens,
    closed up to them, then room for those of its own."""

    keys: Tensor
    values: Tensor

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, places: Tensor, group: Group) -> Kept:
        """From rows [·, heads, d] that have at `places` [count, room] what is before the tokens."""
        return cls(*(group.room_behind(some[places]) for some in (keys, values)))

    @classmethod
    def none(cls, keys: Tensor, group: Group) -> Kept:
        """Of sequences that nothing comes before; like keys [N, heads, d]."""
        shape = (group.count, keys.shape[1], group.size, keys.shape[2])
        return cls(keys.new_empty(shape), keys.new_empty(shape))

    def select(self, members: Tensor, before: Group, group: Group) -> Kept:
        """Of some members of a group, which now are a group: without what none of them has."""
        columns = slice(before.room - group.room, before.room + group.size)
        return Kept(self.keys[members, :, columns], self.values[members, :, columns])


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    kept: Sequence[Kept],
    scaling: float,
    window: int | None,
) -> Tensor:
    """[N, heads, d] what attention gives for the tokens of a row, by their queries
    [N, heads, d] and keys and values [N, heads or fewer, d], differentiable in all three.

    Writes the keys and values into what is kept, behind those before.
    """
    found: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        query, key, value, _Call(packing, tuple(kept), scaling, window)
    )
    return found


@dataclass(frozen=True)
class _Call:
    packing: Packing
    kept: tuple[Kept, ...]
    scaling: float
    window: int | None


class _Attention(torch.autograd.Function):
    """softmax(s·Q·Kᵀ + mask)·V group by group, and its gradients at the row's own tokens."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, call: _Call) -> Tensor:
        """See `attend`."""
        found = call.packing.empty(query.shape, value.dtype)
        ctx.call, ctx.seen = call, []
        for group, kept in zip(call.packing.groups, call.kept, strict=True):
            queries = _grouped(group.side_by_side(query), key.shape[1])
            own = group.side_by_side(key), group.side_by_side(value)
            keys, values = _filled(kept, own)
            scores = torch.baddbmm(
                queries.new_empty(1), queries, keys.mT, beta=0, alpha=call.scaling
            )
            _masked(scores, group, call.window)
            full = torch.promote_types(scores.dtype, torch.float32)
            shares = scores.softmax(2, dtype=full).to(value.dtype)
            states = torch.bmm(shares, values)
            group.put(found, states.view(group.count, -1, group.size, states.shape[2]))
            ctx.seen.append((queries, own, shares, states))
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Of the queries, keys and values of the row."""
        (gradient,), call = gradients, ctx.call
        queries, (own_keys, _), *_ = ctx.seen[0]
        heads = own_keys.shape[1]
        like_keys = (len(gradient), heads, gradient.shape[2])
        of_query = call.packing.empty(gradient.shape, queries.dtype)
        of_key = call.packing.empty(like_keys, own_keys.dtype)
        of_value = call.packing.empty(like_keys, gradient.dtype)
        for group, kept, (queries, own, shares, states) in zip(
            call.packing.groups, call.kept, ctx.seen, strict=True
        ):
            side = (group.count, -1, group.size, gradient.shape[2])
            keys, values = _filled(kept, own)  # another pass may have been made since
            down = _grouped(group.side_by_side(gradient), heads)
            of_shares = torch.bmm(down, values.mT)
            of_shares.sub_((down * states).sum(2, keepdim=True)).mul_(shares)
            of_scores = of_shares.to(queries.dtype).mul_(call.scaling)
            group.put(of_query, torch.bmm(of_scores, keys).view(side))
            behind = slice(group.room, None)
            group.put(of_key, torch.bmm(of_scores[:, :, behind].mT, queries).view(side))
            group.put(of_value, torch.bmm(shares[:, :, behind].mT, down).view(side))
        return of_query, of_key, of_value, None


def _grouped(side_by_side: Tensor, heads: int) -> Tensor:
    """[count·heads, heads' size, d] of [count, all heads, size, d]: those on one key as one."""
    count, _, _, width = side_by_side.shape
    return side_by_side.reshape(count * heads, -1, width)


def _filled(kept: Kept, own: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Keys and values [count·heads, room + size, d] with the row's own behind those before."""
    for whole, some in zip((kept.keys, kept.values), own, strict=True):
        whole[:, :, -some.shape[2] :] = some
    return kept.keys.flatten(0, 1), kept.values.flatten(0, 1)


def _masked(scores: Tensor, group: Group, window: int | None) -> None:
    """Scores [count·heads, heads' size, room + size] without those of what is not looked at."""
    shape = (group.count, -1, scores.shape[1] // group.size, group.size, scores.shape[2])
    scores.view(shape).add_(group.mask(window))
