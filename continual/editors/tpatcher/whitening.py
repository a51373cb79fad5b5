"""Coordinates in which what a model reads spreads alike in all directions.

The widest margin between two sets depends on how lengths are measured. Among raw queries the few
directions in which all texts differ decide it; in these coordinates they count as much as others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Whitening:
    """The way from queries and keys to these coordinates and back; float64, on the CPU."""

    root: Tensor  # [d, d] lower triangular: root · rootᵀ is the covariance of queries, and a ridge

    @classmethod
    def of(cls, queries: Tensor, ridge: float) -> Self | None:
        """Made for queries [m, d]; `ridge` times their mean variance is added to each direction.
        None where they are too few, or all alike."""
        rows = queries.double().cpu()
        if len(rows) < 2:
            return None
        covariance = torch.cov(rows.T)
        added = ridge * float(covariance.diagonal().mean())
        if not added > 0.0:
            return None
        covariance.diagonal().add_(added)
        root, failed = torch.linalg.cholesky_ex(covariance)
        return None if bool(failed) else cls(root)

    def queries(self, rows: Tensor) -> Tensor:
        """Take queries [.., d] there; in float64, on the CPU."""
        return _solved(rows, self.root, upper=False)

    def key_there(self, key: Tensor) -> Tensor:
        """[d] the key that scores queries there as a key [d] scores them here."""
        return key.double().cpu() @ self.root

    def key_here(self, key: Tensor) -> Tensor:
        """[d] the other way round."""
        return _solved(key, self.root.T, upper=True)


def _solved(rows: Tensor, root: Tensor, *, upper: bool) -> Tensor:
    """Solve root · x = row for each row [.., d]."""
    columns = rows.double().cpu().reshape(-1, rows.shape[-1]).T
    found: Tensor = torch.linalg.solve_triangular(root, columns, upper=upper)
    return found.T.reshape(rows.shape)
