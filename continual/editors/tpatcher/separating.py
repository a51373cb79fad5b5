"""Keys of the largest margin, for queries that the closed form cannot tell from the memory.

A neuron's key and bias are a plane: its own queries lie on one side, the memory on the other. Of
all planes the one with the most room to both sides stands on the shortest line from the convex hull
of the memory to that of the own queries, and there is none at all where the hulls meet. The line is
found by Wolfe's algorithm for the point of least norm (Wolfe, Mathematical Programming 11, 1976) on
the differences of the two sets, of which only the few that carry the point are ever looked at.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from continual.editors.tpatcher.whitening import Whitening

Supports = Callable[[Tensor], Tensor]  # key [d] → the row [d] of memory that it scores highest

ENOUGH = 0.99  # of the largest margin
STEPS_MAX = 200  # searches of the memory; some twenty are usual
_NONE = 1e-12  # a share of the point that is no share


def widest_key(
    own: Tensor, start: Tensor, supports: Supports, whitening: Whitening | None = None
) -> Tensor:
    """[d] the shortest line from the memory's hull to that of the own queries [r, d].

    `start` [d] is where the search looks first. The key scores every own query higher than every
    row of the memory by ``ENOUGH`` of its square at least; it is about zero where the hulls meet,
    and `start` for queries that are not finite, which nothing separates. With a whitening the line
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
        """The difference [d] of an own query and a row of the memory that `key` scores least."""
        return own[(own @ key).argmin()] - supports(key.to(start)).double().cpu()

    corral = _Corral(furthest(start.double().cpu()))
    for _ in range(STEPS_MAX):
        key = corral.point
        difference = furthest(key)
        if difference @ key >= ENOUGH * key.square().sum() or not corral.take(difference):
            break
    return corral.point.to(start)


def _whitened(supports: Supports, whitening: Whitening, like: Tensor) -> Supports:
    """The supports in whitened coordinates; keys are looked at in the dtype of `like`."""

    def there(key: Tensor) -> Tensor:
        return whitening.queries(supports(whitening.key_here(key).to(like)))

    return there


class _Corral:
    """Few vectors, each needed, whose hull comes nearest to zero in its inside."""

    def __init__(self, first: Tensor) -> None:
        self._vectors = first[None]  # [n, d]
        self._shares = first.new_ones(1)  # [n] of the point, all positive; together 1

    @property
    def point(self) -> Tensor:
        """[d] the point of least norm."""
        return self._shares @ self._vectors

    def take(self, vector: Tensor) -> bool:
        """Take one more vector in, and let go of those that it makes needless; False where it is
        here already: then rounding is all that is left."""
        if bool((self._vectors == vector).all(1).any()):
            return False
        self._vectors = torch.cat([self._vectors, vector[None]])
        self._shares = torch.cat([self._shares, vector.new_zeros(1)])
        while bool(((flat := self._flat_shares()) <= _NONE).any()):
            going = (flat <= _NONE).nonzero().flatten()
            falls = (self._shares[going] - flat[going]).clamp(min=_NONE)
            way = (self._shares[going] / falls).amin().clamp(0.0, 1.0)
            shares = self._shares + way * (flat - self._shares)
            kept = shares > _NONE
            if bool(kept.all()):  # by rounding: the first to go does
                kept[going[(self._shares[going] / falls).argmin()]] = False
            self._vectors = self._vectors[kept]
            self._shares = shares[kept] / shares[kept].sum()
        self._shares = flat
        return True

    def _flat_shares(self) -> Tensor:
        """[n] the shares, of any sign, of the point of least norm in the flat through all of them:
        products with it are equal, and the shares sum to 1."""
        count = len(self._vectors)
        system = self._vectors.new_ones(count + 1, count + 1)
        system[:count, :count] = self._vectors @ self._vectors.T
        system[count, count] = 0.0
        wanted = self._vectors.new_zeros(count + 1, 1)
        wanted[count] = 1.0
        solution: Tensor = torch.linalg.lstsq(system, wanted, driver="gelsd").solution
        return solution[:count, 0]
