"""Exact search by inner product over many queries; it never looks at most of them.

The queries are turned so that a few directions carry most of their differences. Their *head* in
these directions is scored; of the rest only the length is kept, and |rest·k| ≤ ‖rest‖‖k‖ (Cauchy
and Schwarz) bounds its share. Rows whose bound is too low are done with; the others are scored in
full. The results are exact: no pruned row could have been among them.

Knows rows of numbers; leaves the owners of the queries to `memory` and the ledger.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from continual.queries.growing import GrowingColumns, GrowingTensor

ROWS_MIN = 8192  # fewer are scored in full
FEW = 512  # rows: no need to choose among them
FITTED_ON_MAX = 4096  # rows that the directions are fitted on
HEAD_SHARE, HEAD_MAX = 4, 256  # a head is this part of the width, this many directions at most
ITERATIONS = 4
FEW_KEYS = 8
PART = 4096  # rows scored at a time, for more keys than FEW_KEYS
GATHERED_SHARE = 4  # from one row in so many on, it is cheaper to score all
ROUNDING = 2.0**-14
"""An upper bound on float32's rounding of a score, as a share of ‖q‖‖k‖."""


class SearchedQueries:
    """Rows [m, d] that grow at the end, and can be searched with keys [n, d]."""

    def __init__(self, like: Tensor) -> None:
        """Begin without rows. `like` [.., d] gives width and device."""
        self._rows = GrowingTensor(like[:0])
        self._norm_max = 0.0  # over all rows ever held
        self._heads: _LeadingParts | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> Tensor:
        """[m, d] all rows: a view."""
        return self._rows.rows

    def append(self, rows: Tensor) -> None:
        """Put rows at the end."""
        if len(rows) == 0:
            return
        self._rows.append(rows)
        self._norm_max = max(self._norm_max, float(rows.norm(dim=1).max()))
        if self._heads is not None:
            self._heads.append(rows)

    def replace(self, rows: Tensor) -> None:
        """Replace all rows."""
        self._rows.truncate(0)
        self._heads, self._norm_max = None, 0.0
        self.append(rows)

    def put(self, index: Tensor, rows: Tensor) -> None:
        """Put other rows in the places `index` [r]."""
        if len(index) == 0:
            return
        self._rows[index] = rows
        self._norm_max = max(self._norm_max, float(rows.norm(dim=1).max()))
        if self._heads is not None:
            self._heads.put(index, rows)

    def cut(self, first: int, last: int) -> None:
        """Take the rows [first, last) out; the others keep their order."""
        self._rows.cut(first, last)
        if self._heads is not None:
            self._heads.cut(first, last)

    def highest(self, keys: Tensor) -> Tensor:
        """Return max q·k over all rows, for keys [n, d] → [n]; -inf where there are no rows.

        It is taken in float64, so that it does not depend on the choice of rows that were scored.
        """
        if len(self) == 0 or len(keys) == 0:
            return keys.new_full((len(keys),), -torch.inf)
        rows = self._leading(keys)
        return (keys.double() @ rows.double().T).amax(1).to(keys.dtype)

    def supporting(self, key: Tensor) -> Tensor:
        """Return [1, d] the row with the highest score for a key [d], likewise; [0, d] if empty."""
        if len(self) == 0:
            return self.rows
        rows = self._leading(key[None])
        return rows[(rows.double() @ key.double()).argmax()][None]

    def _leading(self, keys: Tensor) -> Tensor:
        """Return few of the rows, [r, d]: all that may score highest with some key [n, d], up to
        rounding."""
        if len(self) <= FEW:
            return self.rows
        slack = self._slack(keys)
        if not math.isfinite(slack.sum()):  # a key is not
            return self.rows
        heads = self._pruning()
        if heads is None:
            places, scores = None, keys @ self.rows.T
        else:
            bounds = heads.bounds(keys)
            leaders = self.rows[bounds.max(1).indices]  # their scores are floors
            floors = (leaders * keys).sum(1) - slack - heads.shared(keys)
            places, scores = self._scored(keys, _reaching_one(bounds, floors))
        mask = (scores >= (scores.amax(1) - 2 * slack)[:, None]).any(0)
        return self.rows[mask if places is None else places[mask]]

    def above(self, keys: Tensor, floors: Tensor) -> Tensor:
        """Return [r] the places, ascending, of the rows whose score with one of the keys [n, d]
        is above the key's floor [n]. Rows below it by no more than float rounding may be among
        them."""
        if len(self) == 0 or len(keys) == 0:
            return torch.empty(0, dtype=torch.long, device=self.rows.device)
        thresholds = floors - self._slack(keys)
        heads = self._pruning()
        if heads is None:
            return _reaching_one(keys @ self.rows.T, thresholds).nonzero().squeeze(-1)
        places, scores = self._scored(keys, heads.reaching(keys, thresholds - heads.shared(keys)))
        return places[_reaching_one(scores, thresholds)]

    def _pruning(self) -> _LeadingParts | None:
        """Return the heads that bound the scores; None where scoring all rows costs less."""
        if len(self) < ROWS_MIN:
            return None
        if self._heads is None or 2 * self._heads.fitted_on < min(len(self), 2 * FITTED_ON_MAX):
            self._heads = _LeadingParts.fitted(self.rows)
        return self._heads

    def _scored(self, keys: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places [r] of the rows that are `near` [m], and their scores [n, r]."""
        places = near.nonzero().squeeze(-1)
        if GATHERED_SHARE * len(places) < len(self):
            return places, keys @ self.rows[places].T
        return places, (keys @ self.rows.T)[:, places]

    def _slack(self, keys: Tensor) -> Tensor:
        """Return [n] the largest error that rounding may bring to a score."""
        lengths: Tensor = torch.linalg.vector_norm(keys, dim=1)
        return lengths * (ROUNDING * self._norm_max)


class _LeadingParts:
    """The rows in the directions that tell them apart, and the length of each row's rest."""

    def __init__(self, centre: Tensor, directions: Tensor, fitted_on: int) -> None:
        self._centre = centre  # [d]
        self._directions = directions  # [d, h] orthonormal
        self.fitted_on = fitted_on  # rows
        self._parts = GrowingColumns(directions.new_empty(directions.shape[1] + 1, 0))

    @classmethod
    def fitted(cls, rows: Tensor) -> _LeadingParts:
        """Fit the directions to these rows, and take them all in."""
        sample = rows[:: -(-len(rows) // FITTED_ON_MAX)]
        centre = sample.mean(0)
        main_directions = _principal_directions(sample - centre)
        # a key may point along the rows' mean: as one more direction it loosens no bound
        directions = torch.linalg.qr(torch.cat([centre[:, None], main_directions], 1)).Q
        heads = cls(centre, directions, len(rows))
        heads.append(rows)
        return heads

    def append(self, rows: Tensor) -> None:
        """Take in rows [r, d]."""
        self._parts.append(self._split(rows - self._centre).T)

    def put(self, index: Tensor, rows: Tensor) -> None:
        """Put rows in places as `SearchedQueries.put` does."""
        self._parts.columns[:, index] = self._split(rows - self._centre).T

    def cut(self, first: int, last: int) -> None:
        """Take rows out as `SearchedQueries.cut` does."""
        self._parts.cut(first, last)

    def shared(self, keys: Tensor) -> Tensor:
        """Return [n] the part of q·k that all rows have."""
        return keys @ self._centre

    def bounds(self, keys: Tensor) -> Tensor:
        """Return [n, m] upper bounds on the rest of q·k, up to rounding."""
        return self._split(keys) @ self._parts.columns

    def reaching(self, keys: Tensor, floors: Tensor) -> Tensor:
        """Return [m] bool: true for rows that may reach the floor [n] of one of the keys, without
        the shared part. Many keys go over parts of the rows that stay in a cache."""
        if len(keys) <= FEW_KEYS:
            return _reaching_one(self.bounds(keys), floors)
        heads, offsets = self._split(keys), -floors[:, None]
        parts = self._parts.columns.split(PART, dim=1)
        return torch.cat([torch.addmm(offsets, heads, part).amax(0) >= 0 for part in parts])

    def _split(self, vectors: Tensor) -> Tensor:
        """Return [r, h + 1] heads, and upper bounds on the lengths of the rests."""
        heads = vectors @ self._directions
        squares = vectors.square().sum(1, keepdim=True)
        rests = (squares - heads.square().sum(1, keepdim=True)).clamp(min=0)
        return torch.cat([heads, (rests + ROUNDING * squares).sqrt()], dim=1)


def _reaching_one(scores: Tensor, floors: Tensor) -> Tensor:
    """Return [m] bool: true for rows that reach the floor of one of the keys, for scores [n, m] and
    floors [n].

    Key by key: to compare and to reduce them all at once takes twice as long.
    """
    mask = scores[0] >= floors[0]
    for row, floor in zip(scores[1:], floors[1:], strict=True):
        mask |= row >= floor
    return mask


def _principal_directions(centred: Tensor) -> Tensor:
    """Return [d, h] about the leading principal directions of rows [m, d], by subspace iteration.

    Their quality decides the speed of a search, never its result.
    """
    width = centred.shape[1]
    count = min(max(1, width // HEAD_SHARE), HEAD_MAX)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(width, count, generator=generator).to(centred)
    directions = torch.linalg.qr(start).Q
    for _ in range(ITERATIONS):
        directions = torch.linalg.qr(centred.T @ (centred @ directions)).Q
    assert isinstance(directions, Tensor)
    return directions
