"""Updates beside a matrix that nothing is written into: y + (x·L)·R, by a hook on its module.

The matrix is packed, or away on a disk (see `storage`), and keeps its bytes: going back lets go of
factors, and the model is as if they had never been there. Knows one matrix of a linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from continual import hooks
from continual.effects import FACTORS
from continual.effects.parameters import Addition, ParameterEdits
from continual.errors import EditError
from continual.storage import BESIDE_PACKED, device_of

UNITS_MAX = 512  # rows of the identity in one product


@dataclass(frozen=True)
class UnwritableMatrix:
    """The matrix of a linear layer, and the reason why nothing is written into it."""

    path: str
    module: Any  # the layer
    shape: tuple[int, int]  # [inputs, outputs]
    dtype: torch.dtype  # of the rows that the layer takes
    reason: str

    @torch.no_grad()
    def numbers(self) -> Tensor:
        """Return the matrix [inputs, outputs] float32 as its layer multiplies by it."""
        inputs, outputs = self.shape
        total = torch.empty(inputs, outputs, device=self.device)
        for start in range(0, inputs, UNITS_MAX):
            count = min(UNITS_MAX, inputs - start)
            units = torch.zeros(count, inputs, dtype=self.dtype, device=self.device)
            units[:, start : start + count].fill_diagonal_(1.0)
            total[start : start + count] = self.module.forward(units)
        if self.module.bias is None:
            return total
        bias: Tensor = self.module.forward(torch.zeros_like(units[:1]))
        return total - bias.float()

    @property
    def device(self) -> torch.device:
        """The device on which the layer runs."""
        module: nn.Module = self.module
        return device_of(module)


class FactorsBeside(ParameterEdits):
    """A matrix that nothing is written into, and the factors of all patches beside it.

    All columns are multiplied at once, in float32, in the order of their patches.
    """

    def __init__(self, matrix: UnwritableMatrix, block: int, *, is_turned: bool) -> None:
        super().__init__(matrix.shape, block, is_turned=is_turned)
        self._matrix = matrix
        inputs, outputs = matrix.shape
        self._left = torch.empty(inputs, 0, device=matrix.device)
        self._right = torch.empty(0, outputs, device=matrix.device)
        self._columns: list[int] = []  # of every patch
        self._is_silent = False

    @property
    def size(self) -> int:
        """See `ParameterEdits`."""
        return len(self._columns)

    @property
    def base(self) -> Tensor:
        """See `ParameterEdits`: unpacked at each call, float32."""
        return self._matrix.numbers()

    @property
    def change(self) -> Tensor:
        """See `ParameterEdits`: computed at each call."""
        return self._left @ self._right

    @property
    def sum(self) -> Tensor:
        """See `ParameterEdits`: computed at each call."""
        return self.base + self.change

    @property
    def stays_factors(self) -> bool:
        """See `ParameterEdits`: True."""
        return True

    def _no_keys(self) -> Tensor:
        return self._left.new_empty(0, len(self._left))

    def add(
        self,
        addition: Addition,
        keys: Tensor | None = None,
        gradient_rows: Tensor | None = None,
    ) -> Tensor:
        """See `ParameterEdits`. Raises EditError for a difference that has no factors, too."""
        self._require_shape(addition)
        if addition.product is None:
            raise EditError(
                f"A patch changes {self._matrix.path} as a whole, and it {self._matrix.reason}: "
                f"only products of factors stand beside it. Editors for it: {BESIDE_PACKED}."
            )
        left, right = (factor.to(self._left) for factor in addition.product)
        self._left, self._right = torch.cat([self._left, left], 1), torch.cat([self._right, right])
        self._columns.append(len(right))
        self._keys.append(keys)
        self._gradient_rows.append(gradient_rows)
        return torch.cat([left.flatten(), right.flatten()])

    def settle(self) -> None:
        """See `ParameterEdits`: nothing to let go of."""

    def require_way_back(self, size: int) -> None:
        """See `ParameterEdits`: there always is one."""

    def truncate(self, size: int) -> None:
        """See `ParameterEdits`."""
        columns = sum(self._columns[:size])
        self._left, self._right = self._left[:, :columns].clone(), self._right[:columns].clone()
        del self._columns[size:], self._keys[size:], self._gradient_rows[size:]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """See `Effect.attached`: the layer's output has the product of the factors in it."""
        with hooks.joined_by(self._matrix.module, self._product):
            yield

    def _product(self, rows: Tensor) -> Tensor | None:
        """Return (x·L)·R [.., outputs] float32 of the layer's input; None if it stays as it is."""
        if self._is_silent or not self._columns:
            return None
        return (rows.float() @ self._left) @ self._right

    @property
    def beside(self) -> Mapping[str, int]:
        """See `Effect.beside`: its patches."""
        return {FACTORS: self.size}

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """See `Effect.silenced`."""
        was_silent, self._is_silent = self._is_silent, True
        try:
            yield
        finally:
            self._is_silent = was_silent

    def restore(self) -> None:
        """See `ParameterEdits`: nothing was written."""
