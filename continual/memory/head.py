"""The trained part of a scope: from a pair's features to the chance that it is in scope.

Knows its weights and their file format; leaves learning them to `training`.

    relation  = [P a * P k, |P a - P k|]          a, k: the two relations' embeddings, times √d
    logit     = v · relu(W [numbers, relation] + b) + c
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.memory.features import NUMBERS, Features

SHAPES = {
    "mean": ("numbers",),
    "spread": ("numbers",),
    "projection": ("rank", "width"),
    "hidden_weight": ("hidden", "inputs"),
    "hidden_bias": ("hidden",),
    "out_weight": ("hidden",),
    "out_bias": (),
}
BLOCK = 64  # rows of every product, so that no score is rounded by the scores beside it


@dataclass(frozen=True)
class ScopeHead:
    """The weights, float32, by the names in ``SHAPES``."""

    weights: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if problem := _problem(self.weights):
            raise ValueError(problem)

    @property
    def width(self) -> int:
        """The dimensions of the embeddings that it reads."""
        return self.weights["projection"].shape[1]

    @torch.no_grad()
    def logits(self, features: Features) -> Tensor:
        """Return [p] float64, each to the bit the same whatever pairs stand beside it."""
        weights = {name: weight.double() for name, weight in self.weights.items()}
        blocks = [
            logits(weights, *(_filled(part[start : start + BLOCK]) for part in features.parts))
            for start in range(0, len(features), BLOCK)
        ]
        return torch.cat([*blocks, torch.empty(0, dtype=torch.float64)])[: len(features)]

    def calibrated(self, slope: float, offset: float) -> ScopeHead:
        """Return a head with logits slope · logit + offset (Platt 1999)."""
        weights = dict(self.weights)
        weights["out_weight"] = weights["out_weight"] * slope
        weights["out_bias"] = weights["out_bias"] * slope + offset
        return ScopeHead(weights)


def logits(weights: Mapping[str, Tensor], numbers: Tensor, asked: Tensor, kept: Tensor) -> Tensor:
    """Return [p] logits for numbers [p, n] and relations [p, d]."""
    scale = weights["projection"].shape[1] ** 0.5
    query = (asked * scale) @ weights["projection"].T
    record = (kept * scale) @ weights["projection"].T
    inputs = torch.cat(
        [(numbers - weights["mean"]) / weights["spread"], query * record, (query - record).abs()], 1
    )
    hidden = torch.relu(inputs @ weights["hidden_weight"].T + weights["hidden_bias"])
    return (hidden * weights["out_weight"]).sum(1) + weights["out_bias"]


def _filled(rows: Tensor) -> Tensor:
    """Return the rows, with rows of zeros up to a whole block."""
    return torch.cat([rows, rows.new_zeros(BLOCK - len(rows), *rows.shape[1:])])


def _problem(weights: Mapping[str, Tensor]) -> str | None:
    """Return the fault of the weights, or None."""
    if weights.keys() != SHAPES.keys():
        return f"has the tensors {sorted(weights)}, not {sorted(SHAPES)}"
    sizes = {"numbers": len(NUMBERS)}
    sizes["rank"], sizes["width"] = _sides(weights["projection"])
    sizes["hidden"] = weights["hidden_bias"].numel()
    sizes["inputs"] = sizes["numbers"] + 2 * sizes["rank"]
    for name, names in SHAPES.items():
        shape = tuple(sizes[side] for side in names)
        if tuple(weights[name].shape) != shape:
            return f"{name} has the shape {list(weights[name].shape)}, not {list(shape)}"
        if not weights[name].isfinite().all():
            return f"{name} holds NaN or Inf"
    return None


def _sides(matrix: Tensor) -> tuple[int, int]:
    return (matrix.shape[0], matrix.shape[1]) if matrix.ndim == 2 else (0, 0)
