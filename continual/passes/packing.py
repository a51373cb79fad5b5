"""Sequences one behind another in a single row, and the attention among the tokens of each.

Attention alone knows of sequences: it takes sequences of like lengths side by side, padded, with
the kept keys and values of the tokens before them. All other parts of a block work token by token,
so no padding has to go through them.

Scaled dot-product attention as transformers' models ask for it: causal, with groups of heads on one
key, with a window. Knows nothing of models.
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
class SequenceLengths:
    """The numbers of each sequence's tokens in the row, and of the kept tokens before them."""

    sizes: tuple[int, ...]
    before: tuple[int, ...]


GROUP_TOKENS_MAX = 32_768  # side by side, with padding
ROWS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""The lengths of a row. A CPU's library prepares a product of each new size, which takes longer
than the product of a few rows, and ends have other sizes whenever some leave."""
ROWS_MAX = ROWS[-1]


def filled_up(rows: int) -> int:
    """Round `rows` up to the next size in ROWS, or above all of them to a multiple of 256."""
    if rows > ROWS_MAX:
        return -(-rows // 256) * 256
    return next(size for size in ROWS if size >= rows)


class LengthGroup:
    """Sequences of like lengths: they stand in a stretch of the row, and side by side in
    attention."""

    def __init__(
        self, first: int, sizes: Tensor, before: Tensor, nowhere: int, device: torch.device
    ) -> None:
        """`sizes` and `before` as in `SequenceLengths`, [count]; `nowhere` is the place in the row
        of a token that belongs to no sequence."""
        self.first, self.rows = first, int(sizes.sum())
        self.count, self.size, self.room = len(sizes), int(sizes.max()), int(before.max())
        self._before = before.to(device)
        self._masks: dict[int | None, Tensor] = {}
        is_token = (torch.arange(self.size) < sizes[:, None]).flatten()
        self._is_full = self.rows == len(is_token)
        places = is_token.nonzero().squeeze(1)
        sources = torch.full_like(is_token, nowhere, dtype=torch.long)
        sources[places] = torch.arange(first, first + self.rows)
        self._places = places.to(device)  # of the row's tokens, side by side
        self._sources = sources.to(device)  # of the side-by-side tokens, in the row

    @property
    def stretch(self) -> slice:
        """The group's tokens in the row."""
        return slice(self.first, self.first + self.rows)

    def side_by_side(self, row: Tensor) -> Tensor:
        """Return the row's states [N, heads, d] side by side, [count, heads, size, d]; padding
        has the states of a token that belongs to no sequence."""
        states = row[self.stretch] if self._is_full else row.index_select(0, self._sources)
        return states.view(self.count, self.size, *states.shape[1:]).transpose(1, 2)

    def room_behind(self, before: Tensor) -> Tensor:
        """Return the states before the tokens, [count, room, heads, d], with room for the tokens'
        own behind them: [count, heads, room + size, d]."""
        count, _, heads, width = before.shape
        states = before.new_empty(count, heads, self.room + self.size, width)
        states[:, :, : self.room] = before.transpose(1, 2)
        return states

    def put(self, row: Tensor, found: Tensor) -> None:
        """Write side-by-side states [count, heads, size, d] to a row [N, heads, d]."""
        stretch, found = row[self.stretch], found.transpose(1, 2)
        if self._is_full:
            stretch.view(found.shape).copy_(found)
        else:
            torch.index_select(found.flatten(0, 1), 0, self._places, out=stretch)

    def mask(self, window: int | None) -> Tensor:
        """Return the mask to add to scores, [count, 1, 1, size, room + size]: -inf for tokens that
        a token does not look at, zero for the others."""
        if window not in self._masks:
            device = self._before.device
            query = torch.arange(self.size, device=device)[:, None]
            key = torch.arange(-self.room, self.size, device=device)
            is_visible = (key <= query) & (key >= -self._before[:, None, None])
            if window is not None:
                is_visible = is_visible & (query - key < window)
            bias = torch.zeros(is_visible.shape, device=device).masked_fill_(~is_visible, -math.inf)
            self._masks[window] = bias[:, None, None]
        return self._masks[window]


class Packing:
    """The places of the tokens of some sequences in one row. Tokens that belong to no sequence fill
    the row up; attention reads its padding from the last of them."""

    def __init__(
        self, lengths: SequenceLengths, groups: Sequence[Sequence[int]], device: torch.device
    ) -> None:
        self.lengths, self._members, self._device = lengths, groups, device
        sizes, before = torch.tensor(lengths.sizes), torch.tensor(lengths.before)
        self.groups: list[LengthGroup] = []
        self._firsts = torch.empty_like(sizes)
        self.rows = sum(lengths.sizes)
        self.width = filled_up(self.rows + 1)
        total = 0
        for members in groups:
            index = torch.tensor(members)
            group = LengthGroup(total, sizes[index], before[index], self.width - 1, device)
            self._firsts[index] = total + sizes[index].cumsum(0) - sizes[index]
            total += group.rows
            self.groups.append(group)
        self.order = [sequence for members in groups for sequence in members]
        self._begin = self._firsts.to(device)

    @classmethod
    def of(cls, lengths: SequenceLengths, padded_max: float, device: torch.device) -> Packing:
        """Pack sequences in groups of like lengths: the longest of a group is at most `padded_max`
        times the shortest."""
        return cls(lengths, by_length(lengths.sizes, GROUP_TOKENS_MAX, padded_max), device)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a row [N, ..] to write all sequences' states into; zero at the tokens that belong
        to none."""
        row = torch.empty(*shape, dtype=dtype, device=self._device)
        row[self.rows :] = 0
        return row

    def row(self, sequences: Tensor, positions: Tensor) -> Tensor:
        """Return the places of tokens in the row, by their sequences and their positions among the
        sequence's own tokens."""
        return self._begin[sequences] + positions

    def tokens(self, firsts: Tensor) -> Tensor:
        """Return the places [N] of the row's tokens in another layout, in which the tokens of each
        sequence begin at `firsts` (on the CPU); 0 for tokens that belong to no sequence."""
        order = torch.tensor(self.order)
        sizes = torch.tensor(self.lengths.sizes)[order]
        places = torch.zeros(self.width, dtype=torch.long)
        shifts = torch.repeat_interleave(firsts[order] - self._firsts[order], sizes)
        places[: self.rows] = shifts + torch.arange(self.rows)
        return places.to(self._device)

    def select(self, chosen: Sequence[int]) -> tuple[Packing, list[list[int]]]:
        """Return the packing of some of the sequences, without the groups that have none of them;
        and for each present group, the places of the chosen among its members."""
        number = {sequence: i for i, sequence in enumerate(chosen)}
        member_places = [
            [i for i, s in enumerate(group_members) if s in number]
            for group_members in self._members
        ]
        groups = [
            [number[group_members[i]] for i in places]
            for group_members, places in zip(self._members, member_places, strict=True)
            if places
        ]
        lengths = SequenceLengths(
            tuple(self.lengths.sizes[i] for i in chosen),
            tuple(self.lengths.before[i] for i in chosen),
        )
        return Packing(lengths, groups, self._device), member_places

    def members(self) -> Iterator[tuple[LengthGroup, Tensor]]:
        """Yield the groups, each with its sequences, on the CPU."""
        for group, sequences in zip(self.groups, self._members, strict=True):
            yield group, torch.tensor(sequences)

    def firsts(self, chosen: Sequence[int]) -> Tensor:
        """Return the places where some of the sequences begin in the row, on the CPU."""
        return self._firsts[torch.tensor(chosen)]


@dataclass(frozen=True)
class GroupKeyValues:
    """Keys and values [count, heads, room + size, d] of one group: first the keys and values before
    its tokens, closed up to them, then room for its tokens' own."""

    keys: Tensor
    values: Tensor

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, places: Tensor, group: LengthGroup) -> GroupKeyValues:
        """Gather them from rows [·, heads, d]; `places` [count, room] are those of the tokens
        before the group's."""
        return cls(*(group.room_behind(rows[places]) for rows in (keys, values)))

    @classmethod
    def none(cls, keys: Tensor, group: LengthGroup) -> GroupKeyValues:
        """Return empty room for sequences that begin with the row's tokens; like keys
        [N, heads, d]."""
        shape = (group.count, keys.shape[1], group.size, keys.shape[2])
        return cls(keys.new_empty(shape), keys.new_empty(shape))

    def select(self, members: Tensor, before: LengthGroup, group: LengthGroup) -> GroupKeyValues:
        """Return the keys and values of some members of the group `before`, which now are `group`,
        without columns that none of them needs."""
        columns = slice(before.room - group.room, before.room + group.size)
        return GroupKeyValues(self.keys[members, :, columns], self.values[members, :, columns])


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    kept: Sequence[GroupKeyValues],
    scaling: float,
    window: int | None,
) -> Tensor:
    """Return the output [N, heads, d] of attention for the tokens of a row, by their queries
    [N, heads, d] and keys and values [N, heads or fewer, d], differentiable in all three.

    Writes the keys and values into `kept`, behind those of the tokens before.
    """
    output: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        query, key, value, _PackedAttention(packing, tuple(kept), scaling, window)
    )
    return output


@dataclass(frozen=True)
class _PackedAttention:
    packing: Packing
    kept: tuple[GroupKeyValues, ...]
    scaling: float
    window: int | None


class _Attention(torch.autograd.Function):
    """softmax(s·Q·Kᵀ + mask)·V group by group, and its gradients at the row's own tokens."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, call: _PackedAttention
    ) -> Tensor:
        """See `attend`."""
        output = call.packing.empty(query.shape, value.dtype)
        ctx.call, ctx.seen = call, []
        for group, prefix in zip(call.packing.groups, call.kept, strict=True):
            queries = _grouped(group.side_by_side(query), key.shape[1])
            row_states = group.side_by_side(key), group.side_by_side(value)
            keys, values = _filled(prefix, row_states)
            scores = torch.baddbmm(
                queries.new_empty(1), queries, keys.mT, beta=0, alpha=call.scaling
            )
            _masked(scores, group, call.window)
            score_dtype = torch.promote_types(scores.dtype, torch.float32)
            shares = scores.softmax(2, dtype=score_dtype).to(value.dtype)
            states = torch.bmm(shares, values)
            group.put(output, states.view(group.count, -1, group.size, states.shape[2]))
            ctx.seen.append((queries, row_states, shares, states))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of the row's queries, keys and values."""
        (gradient,), call = gradients, ctx.call
        queries, (own_keys, _), *_ = ctx.seen[0]
        heads = own_keys.shape[1]
        like_keys = (len(gradient), heads, gradient.shape[2])
        of_query = call.packing.empty(gradient.shape, queries.dtype)
        of_key = call.packing.empty(like_keys, own_keys.dtype)
        of_value = call.packing.empty(like_keys, gradient.dtype)
        for group, prefix, (queries, row_states, shares, states) in zip(
            call.packing.groups, call.kept, ctx.seen, strict=True
        ):
            side = (group.count, -1, group.size, gradient.shape[2])
            keys, values = _filled(prefix, row_states)  # another pass may have been made since
            down = _grouped(group.side_by_side(gradient), heads)
            of_shares = torch.bmm(down, values.mT)
            of_shares.sub_((down * states).sum(2, keepdim=True)).mul_(shares)
            of_scores = of_shares.to(queries.dtype).mul_(call.scaling)
            group.put(of_query, torch.bmm(of_scores, keys).view(side))
            row_places = slice(group.room, None)
            group.put(of_key, torch.bmm(of_scores[:, :, row_places].mT, queries).view(side))
            group.put(of_value, torch.bmm(shares[:, :, row_places].mT, down).view(side))
        return of_query, of_key, of_value, None


def _grouped(side_by_side: Tensor, heads: int) -> Tensor:
    """Join the heads on one key: [count, all heads, size, d] → [count·heads, heads' size, d]."""
    count, _, _, width = side_by_side.shape
    return side_by_side.reshape(count * heads, -1, width)


def _filled(kept: GroupKeyValues, own: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Write the row's own keys and values behind the kept ones; return both, each
    [count·heads, room + size, d]."""
    for room, states in zip((kept.keys, kept.values), own, strict=True):
        room[:, :, -states.shape[2] :] = states
    return kept.keys.flatten(0, 1), kept.values.flatten(0, 1)


def _masked(scores: Tensor, group: LengthGroup, window: int | None) -> None:
    """Set the scores [count·heads, heads' size, room + size] of tokens out of sight to -inf, in
    place."""
    shape = (group.count, -1, scores.shape[1] // group.size, group.size, scores.shape[2])
    scores.view(shape).add_(group.mask(window))
