"""Low-rank patches that are solved from gradients, with the rows that they were solved from.

A column of L belongs to one token of an answer, and to one row: the input h of the matrix at that
token, and beside it the gradient g of the loss at its output. Statistics over all rows so far and
the memory of past inputs are made of the rows on the model, so that they go back with the history.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from continual.errors import EditError
from continual.patches.low_rank import Editable, LowRankPatch
from continual.patches.owners import others_places


@dataclass(frozen=True)
class GradientPatch(LowRankPatch):
    """Factors by the path of the matrix, each column with its row."""

    kind: ClassVar[str] = "low-rank-by-gradients"

    gradient_rows: Mapping[str, Tensor] = field(default_factory=dict)
    """[n, inputs + outputs] float32 of each matrix: h, and beside it g."""

    def tensors(self) -> dict[str, Tensor]:
        """Return `PATH.left`, `PATH.right`, and `PATH.rows`."""
        return super().tensors() | {f"{n}.rows": rows for n, rows in self.gradient_rows.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """See `Patch.from_tensors`."""
        patch = super().from_tensors(tensors, meta)
        return replace(patch, gradient_rows=rows_in(tensors, patch.blocks))

    def put_on(self, model: Editable) -> Sequence[Tensor]:
        """See `Patch.put_on`."""
        weights = {name: self.weight(model, name) for name in self.names}
        return [
            weight.add(self.factors[name], self.keys.get(name), self.gradient_rows.get(name))
            for name, weight in weights.items()
        ]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> list[Self]:
        """See `Patch.joined`: joins columns and rows, in the order of their addition."""
        (patch,) = super().joined(parts)
        rows = {n: [p.gradient_rows[n] for p in parts if n in p.factors] for n in patch.factors}
        return [replace(patch, gradient_rows={n: torch.cat(each) for n, each in rows.items()})]

    def without(self, request_id: str) -> Self | None:
        """See `Patch.without`: its rows go with its columns."""
        rest = super().without(request_id)
        if rest is None or rest is self:
            return rest
        places = others_places(self.owners, request_id)
        return replace(rest, gradient_rows={n: r[places] for n, r in self.gradient_rows.items()})

    def check(self) -> None:
        """See `Patch.check`."""
        super().check()
        for name, factors in self.factors.items():
            rows = self.gradient_rows.get(name)
            width = len(factors.left) + factors.right.shape[1]
            if rows is None or rows.ndim != 2 or rows.shape[1] != width:
                raise EditError(
                    f"A patch by gradients does not fit together at {name}: it needs rows of "
                    f"{width} numbers, and has {None if rows is None else tuple(rows.shape)}."
                )


def rows_in(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Return the rows of each matrix in a file. Raises EditError if one has none."""
    try:
        return {name: tensors[f"{name}.rows"] for name in names}
    except KeyError as error:
        raise EditError(
            f"A patch by gradients has no {error}: its file is not one of ours."
        ) from None
