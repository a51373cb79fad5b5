"""Coordinates in which a model's queries spread alike in all directions.

The widest margin between two sets depends on the measure of length. Among raw queries the few
directions in which all texts differ decide it; in these coordinates all directions count alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class QueryWhitening:
    """The map of queries and keys to these coordinates and back; float64, on the CPU."""

    root: Tensor  # [d, d] lower triangular: root · rootᵀ is the covariance of queries, and a ridge

    @classmethod
    def of(cls, queries: Tensor, ridge: float) -> Self | None:
        """Fit the map to queries [m, d], with `ridge` times their mean variance added to each
        direction; None if they are too few, or all alike."""
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
        """Map queries [.., d] to these coordinates; in float64, on the CPU."""
        return _solved(rows, self.root, upper=False)

    def key_there(self, key: Tensor) -> Tensor:
        """Return the key [d] that scores mapped queries as `key` [d] scores the raw ones."""
        return key.double().cpu() @ self.root

    def key_here(self, key: Tensor) -> Tensor:
        """Return the key [d] that scores raw queries as `key` [d] scores the mapped ones."""
        return _solved(key, self.root.T, upper=True)


def _solved(rows: Tensor, root: Tensor, *, upper: bool) -> Tensor:
    """Solve root · x = row for each row [.., d]."""
    columns = rows.double().cpu().reshape(-1, rows.shape[-1]).T
    solution: Tensor = torch.linalg.solve_triangular(root, columns, upper=upper)
    return solution.T.reshape(rows.shape)
