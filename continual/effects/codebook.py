"""A codebook at a place: where a query is near a key, the output there is replaced by a value.

Hartvigsen et al. 2023 (GRACE), section 3. An entry has a key κ, a value v, a radius ε and a label.
The nearest entry answers a query x if ‖x - κ‖ ≤ ε; otherwise the output stays as it is, bit for
bit. A row that comes in has a radius of its own, ε₀, and meets the nearest entry i at distance d:

- d > ε₀ + εᵢ, or there is no entry: it becomes an entry with ε₀;
- it has the label of i, and i's value answers it: εᵢ grows to d;
- otherwise the two share the way between them: it becomes an entry with at most d/2, and i keeps no
  more than d/2.

So radii of earlier entries change. They are never stored as such: they follow from the rows, in
their order, so that a codebook without some rows is the one that never had them. Knows rows and
distances; leaves files and owners to `patches.codebook`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from continual.effects import CODEBOOK, KeptQueries
from continual.effects.gated import Mount
from continual.effects.hearing import OpenRows
from continual.effects.placed_rows import NO_ROW, PlacedRows
from continual.queries.growing import GrowingTensor

ROUNDING = 2.0**-14
"""More than float32 loses in a squared distance, as a share of ‖x‖² + ‖κ‖²."""
DISTANCES_MAX = 2**20  # in one piece
CLOSED = -1.0
"""The radius of an entry that answers nothing any more: another one has its key."""

AnswerTokens = tuple[int, ...]


class CodebookRows(Protocol):
    """n rows that are put on."""

    @property
    def keys(self) -> Tensor:
        """[n, d]"""

    @property
    def values(self) -> Tensor:
        """[n, d]"""

    @property
    def radii(self) -> Tensor:
        """[n] ε₀ of each."""

    @property
    def blurs(self) -> Tensor:
        """[n] how far rounding may move each key: the text that showed it shows it within this."""

    @property
    def labels(self) -> Sequence[AnswerTokens]:
        """[n] the tokens that each is to lead to."""

    @property
    def shares(self) -> Sequence[bool]:
        """[n] whether the value of a near entry of the same label answers it, too."""


class NearestEntry(NamedTuple):
    """An entry, and its distance from a query."""

    entry: int
    distance: float


@dataclass
class _CodebookUndo:
    """The record of one patch that undoes it."""

    first: int  # entries before it
    first_row: int  # rows before it
    radii: dict[int, float] = field(default_factory=dict)  # of earlier entries, as they were
    shared: list[int] = field(default_factory=list)  # earlier entries that answer a row of it


class Codebook(PlacedRows):
    """All entries at one place, in the order in which they came. A piece is a patch."""

    kind = CODEBOOK
    name = "A codebook's rows"

    def __init__(self, mount: Mount) -> None:
        super().__init__(mount)
        column = self.values[:, 0]
        self._radii, self._blurs = GrowingTensor(column), GrowingTensor(column)
        self._labels: list[AnswerTokens] = []
        self._answered: list[list[int]] = []  # the rows of patches that each entry answers
        self._row_count = 0  # of patches
        self._turns: list[_CodebookUndo] = []

    # -- the entries

    @property
    def _pieces(self) -> int:
        return len(self._turns)

    @property
    def radii(self) -> Tensor:
        """[entries] float32 as they are now; negative for an entry that is closed."""
        return self._radii.rows

    @property
    def labels(self) -> Sequence[AnswerTokens]:
        """[entries]"""
        return self._labels

    # -- putting patches on and taking them off

    def extend(self, patch: CodebookRows) -> tuple[Tensor, Tensor, Tensor]:
        """Put a patch's rows on, one after another; return the keys and values of its entries, and
        the radii of all entries, as they now stand.

        Raises EditError for rows of another width than the model.
        """
        self._require_widths(patch.keys, patch.values)
        start = len(self._labels)
        self._turns.append(_CodebookUndo(start, self._row_count))
        keys, values = patch.keys.to(self.keys), patch.values.to(self.keys)
        for row in range(len(keys)):
            self._admit(
                keys[row],
                values[row],
                (float(patch.radii[row]), float(patch.blurs[row])),
                (patch.labels[row], patch.shares[row]),
            )
            self._row_count += 1
        return self.keys[start:], self.values[start:], self.radii

    def _admit(
        self,
        key: Tensor,
        value: Tensor,
        sizes: tuple[float, float],
        says: tuple[AnswerTokens, bool],
    ) -> None:
        (radius, blur), (label, shares) = sizes, says
        near = self.nearest(key)
        while near is not None and self._meets(near, radius):
            if shares and self._labels[near.entry] == label:
                self._widen(near.entry, near.distance + blur)
                self._share(near.entry)
                return
            half = near.distance / 2
            if half > max(blur, float(self._blurs.rows[near.entry])):
                self._set(near.entry, min(half, float(self.radii[near.entry])))
                radius = min(half, radius)
                break
            self._set(near.entry, CLOSED)  # nothing tells the two keys apart: the later one stays
            near = self.nearest(key)
        self._append(key, value, radius, blur, label)

    def _append(
        self, key: Tensor, value: Tensor, radius: float, blur: float, label: AnswerTokens
    ) -> None:
        self._keys.append(key[None])
        self._values.append(value[None])
        self._radii.append(self.radii.new_tensor([radius]))
        self._blurs.append(self.radii.new_tensor([blur]))
        self._labels.append(label)
        self._answered.append([self._row_count])

    def _share(self, entry: int) -> None:
        self._answered[entry].append(self._row_count)
        if entry < self._turns[-1].first:
            self._turns[-1].shared.append(entry)

    def _widen(self, entry: int, radius: float) -> None:
        if radius > float(self.radii[entry]):
            self._set(entry, radius)

    def _set(self, entry: int, radius: float) -> None:
        turn = self._turns[-1]
        if entry < turn.first:
            turn.radii.setdefault(entry, float(self.radii[entry]))
        self._radii[slice(entry, entry + 1)] = self.radii.new_tensor([radius])

    def truncate(self, size: int) -> None:
        """Take off all but the first `size` patches; the radii go back to their values then."""
        while len(self._turns) > size:
            turn = self._turns.pop()
            for part in (self._keys, self._values, self._radii, self._blurs):
                part.truncate(turn.first)
            del self._labels[turn.first :], self._answered[turn.first :]
            self._row_count = turn.first_row
            for entry in turn.shared:
                self._answered[entry].pop()
            for entry, radius in turn.radii.items():
                self._radii[slice(entry, entry + 1)] = self.radii.new_tensor([radius])

    # -- look-up

    def nearest(self, query: Tensor) -> NearestEntry | None:
        """Return the open entry nearest to a query [d], the latest of equally near ones; None
        without entries."""
        (entry, distance) = self._nearest_of(query[None])
        return None if int(entry) < 0 else NearestEntry(int(entry), float(distance))

    def shared(self, key: Tensor, radius: float, label: AnswerTokens) -> int | None:
        """Return the entry that a row with this key [d], ε₀ and label would widen if its value
        answers the row; None if there is none."""
        near = self.nearest(key)
        if near is None or self._labels[near.entry] != label:
            return None
        return near.entry if self._meets(near, radius) else None

    def _meets(self, near: NearestEntry, radius: float) -> bool:
        return near.distance <= radius + float(self.radii[near.entry])

    def rows_of(self, queries: Tensor) -> Tensor:
        """Return [r] the entry that answers each of the queries [r, d]; -1 for none."""
        answers = torch.full((len(queries),), NO_ROW, dtype=torch.long, device=queries.device)
        if not len(self._labels):
            return answers
        for start in range(0, len(queries), self._piece):
            rows = queries[start : start + self._piece].float()
            near = self._perhaps_open(rows).nonzero().squeeze(-1)
            if len(near):
                entries, distances = self._nearest_of(rows[near])
                is_open = (entries >= 0) & (distances <= self.radii.double()[entries])
                answers[start + near[is_open]] = entries[is_open]
        return answers

    @property
    def _piece(self) -> int:
        return max(1, DISTANCES_MAX // max(1, len(self._labels)))

    def _perhaps_open(self, queries: Tensor) -> Tensor:
        """Return [r] bool: true for queries that may be within the radius of an entry, by a product
        in float32."""
        squares, key_squares = queries.square().sum(1)[:, None], self.keys.square().sum(1)
        least = (
            squares + key_squares - 2 * (queries @ self.keys.T) - ROUNDING * (squares + key_squares)
        )
        outside = (least > self.radii.square()) | (self.radii < 0)  # a NaN may be anywhere
        return ~outside.all(1)

    def _nearest_of(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return [r] the nearest open entry to each query, -1 if there is none, and [r] its
        distance in float64, which depends neither on other queries nor on entries further off."""
        places = (self.radii >= 0).nonzero().squeeze(-1)
        if not len(places):
            none = torch.full((len(queries),), NO_ROW, dtype=torch.long, device=queries.device)
            return none, torch.full_like(none, torch.inf, dtype=torch.double)
        keys = self.keys[places].flip(0).double()  # so that of equally near ones the latest is met
        nearest = [distances(query, keys).min(0) for query in queries.double()]
        index = torch.stack([entry for _, entry in nearest])
        return places.flip(0)[index], torch.stack([distance for distance, _ in nearest])

    def _landed(self, output: Tensor, values: Tensor) -> Tensor:
        return values

    def _open_rows(self, queries: Tensor, rows: Tensor) -> OpenRows:
        """Return all rows that an entry answers, each with the share of the entry's radius that is
        left between the query and its edge."""
        openings = [
            (token, row, self._room(queries[token], entry))
            for token, entry in enumerate(rows.tolist())
            if entry >= 0
            for row in self._answered[entry]
        ]
        tokens, opened, rooms = zip(*openings, strict=True) if openings else ((), (), ())
        numbers = torch.tensor([tokens, opened], dtype=torch.long)
        return OpenRows(len(queries), numbers[0], numbers[1], torch.tensor(rooms))

    def _room(self, query: Tensor, entry: int) -> float:
        radius = float(self.radii[entry])
        distance = distances(query.double(), self.keys[entry : entry + 1].double())
        return 1.0 - float(distance) / radius if radius else 1.0

    def may_differ(self, queries: KeptQueries, first: int) -> Tensor:
        """See `GatedEffect.may_differ`.

        Another entry, or none, answers a query only if it lies within the radius of an entry that
        is new or has another radius, or if an entry that came or was closed is nearer to it than
        the one that answered, or answers now: which is then no further from that than two radii.
        """
        keys, radii = self._changed_balls(first)
        differs = torch.zeros(len(queries), dtype=torch.bool)
        squares = queries.squares.cpu()
        for ball_keys, ball_radii in zip(keys.cpu().split(64), radii.cpu().split(64), strict=True):
            key_squares = ball_keys.square().sum(1)[:, None]
            slack = ROUNDING * (squares + key_squares)
            least = squares + key_squares - 2 * queries.bounds(ball_keys).cpu() - slack
            differs |= (~(least > ball_radii.square()[:, None])).any(0)
        return differs

    def _changed_balls(self, first: int) -> tuple[Tensor, Tensor]:
        """Return the keys [b, d] and radii [b] of the balls in which anything may have changed."""
        start = self._turns[first].first if first < len(self._turns) else len(self._labels)
        before, now = self._radii_at(first), self.radii
        widest = torch.maximum(before, now[:start])
        moved = (now[:start] < 0) != (before < 0)
        touched = now[:start] != before
        came = torch.cat([self.keys[:start][moved], self.keys[start:]])
        for key in came:
            nearby = distances(key.double(), self.keys[:start].double()) <= 2 * widest.double()
            touched |= nearby & (widest >= 0)
        radii = torch.cat([widest[touched], now[start:]])
        keys = torch.cat([self.keys[:start][touched], self.keys[start:]])
        return keys[radii >= 0], radii[radii >= 0]

    def _radii_at(self, size: int) -> Tensor:
        """Return the radii of the entries of the first `size` patches, as they were then."""
        if size >= len(self._turns):
            return self.radii.clone()
        radii = self.radii.clone()
        for turn in reversed(self._turns[size:]):
            for entry, radius in turn.radii.items():
                radii[entry] = radius
        return radii[: self._turns[size].first]


def distances(query: Tensor, keys: Tensor) -> Tensor:
    """Return [n] the Euclidean distances of a query [d] to keys [n, d]; float64 of float64."""
    return (keys - query).square().sum(1).sqrt()
