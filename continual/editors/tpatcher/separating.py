"""Finds the key of the largest margin for queries that the closed form cannot separate from memory.

A neuron's key and bias are a plane: its own queries lie on one side, the memory on the other. The
plane with the most room on both sides is perpendicular to the shortest line from the convex hull of
the memory to the hull of the own queries; if the hulls meet, there is no plane. Wolfe's algorithm
for the point of least norm (Wolfe, Mathematical Programming 11, 1976) finds the line, on the
differences of the two sets; it looks only at the few differences that carry the point.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from continual.editors.tpatcher.whitening import QueryWhitening

Supports = Callable[[Tensor], Tensor]  # key [d] → the row [d] of memory that it scores highest

ENOUGH = 0.99  # of the largest margin
STEPS_MAX = 200  # searches of the memory; some twenty are usual
_NONE = 1e-12  # a share of the point that counts as zero


def widest_key(
    own: Tensor, start: Tensor, supports: Supports, whitening: QueryWhitening | None = None
) -> Tensor:
    """Return [d] the shortest line from the memory's hull to the hull of the own queries [r, d].

    The search begins with the key `start` [d]. The result scores every own query higher than every
    row of the memory by at least ``ENOUGH`` of its own square; it is about zero if the hulls meet,
    and `start` for queries that are not finite, which no key separates. With a whitening the line
    is the shortest in its coordinates.
    """
    own = own.double().cpu()
    if not bool(own.isfinite().all()):
        return start
    if whitening is not None:
        there = _whitened(supports, whitening, start)
        key = widest_key(whitening.queries(own), whitening.key_there(start), there)
        return whitening.key_here(key).to(start)

    def furthest(key: Tensor) -> Tensor:
        """Return the difference [d] of an own query and a row of memory that `key` scores least."""
        return own[(own @ key).argmin()] - supports(key.to(start)).double().cpu()

    corral = _Corral(furthest(start.double().cpu()))
    for _ in range(STEPS_MAX):
        key = corral.point
        difference = furthest(key)
        if difference @ key >= ENOUGH * key.square().sum() or not corral.take(difference):
            break
    return corral.point.to(start)


def _whitened(supports: Supports, whitening: QueryWhitening, like: Tensor) -> Supports:
    """Return the supports in whitened coordinates; they read keys in the dtype of `like`."""

    def there(key: Tensor) -> Tensor:
        return whitening.queries(supports(whitening.key_here(key).to(like)))

    return there


class _Corral:
    """A few vectors, all needed, whose hull comes nearest to zero at an inner point."""

    def __init__(self, first: Tensor) -> None:
        self._vectors = first[None]  # [n, d]
        self._shares = first.new_ones(1)  # [n] of the point, all positive; together 1

    @property
    def point(self) -> Tensor:
        """[d] the point of least norm."""
        return self._shares @ self._vectors

    def take(self, vector: Tensor) -> bool:
        """Take one more vector in, and drop the vectors that it makes needless. Return False if the
        vector is here already: then only rounding is left to gain."""
        if bool((self._vectors == vector).all(1).any()):
            return False
        self._vectors = torch.cat([self._vectors, vector[None]])
        self._shares = torch.cat([self._shares, vector.new_zeros(1)])
        while bool(((flat := self._flat_shares()) <= _NONE).any()):
            going = (flat <= _NONE).nonzero().flatten()
            falls = (self._shares[going] - flat[going]).clamp(min=_NONE)
            way = (self._shares[going] / falls).amin().clamp(0.0, 1.0)
            shares = self._shares + way * (flat - self._shares)
            is_kept = shares > _NONE
            if bool(is_kept.all()):  # by rounding: drop the first to reach zero
                is_kept[going[(self._shares[going] / falls).argmin()]] = False
            self._vectors = self._vectors[is_kept]
            self._shares = shares[is_kept] / shares[is_kept].sum()
        self._shares = flat
        return True

    def _flat_shares(self) -> Tensor:
        """Return [n] the shares, of any sign, of the point of least norm in the flat through all
        vectors: its products with them are equal, and the shares sum to 1."""
        count = len(self._vectors)
        system = self._vectors.new_ones(count + 1, count + 1)
        system[:count, :count] = self._vectors @ self._vectors.T
        system[count, count] = 0.0
        right_side = self._vectors.new_zeros(count + 1, 1)
        right_side[count] = 1.0
        solution: Tensor = torch.linalg.lstsq(system, right_side, driver="gelsd").solution
        return solution[:count, 0]
