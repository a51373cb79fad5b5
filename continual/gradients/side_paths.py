"""Low-rank updates beside a running model: h·A·R is added to the output of each edited layer.

So a model runs as if ΔW = A·R were added to its matrices, differentiably, and neither a copy of the
model nor the product is made. Leaves the factors to the methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from continual import hooks


@dataclass(frozen=True)
class SidePath:
    """The factors of one layer's update: one for all sequences of a pass, or one for each."""

    left: Tensor  # A [inputs, n], or [B, inputs, n]
    right: Tensor  # R [n, outputs], or [B, n, outputs]

    def of(self, edits: Tensor) -> SidePath:
        """Return the factors of each sequence [B], by the number of its edit; one for all stays."""
        if self.left.ndim == 2:
            return self
        return SidePath(self.left[edits], self.right[edits])

    def shift(self, inputs: Tensor) -> Tensor:
        """Return h·A·R for inputs h [B, T, inputs], or [B·T, inputs] from a layer of flat rows."""
        if self.left.ndim == 2:
            return (inputs @ self.left) @ self.right
        by_sequence = inputs.reshape(len(self.left), -1, inputs.shape[-1])
        shifts = torch.bmm(torch.bmm(by_sequence, self.left), self.right)
        return shifts.reshape(*inputs.shape[:-1], shifts.shape[-1])


@contextmanager
def beside(modules: Mapping[str, nn.Module], paths: Mapping[str, SidePath]) -> Iterator[None]:
    """Run linear layers with their side paths within `with`."""
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(_beside(module, paths[name]))
        yield


@contextmanager
def _beside(module: nn.Module, path: SidePath) -> Iterator[None]:
    inputs: list[Tensor] = []

    def see(hidden: Tensor) -> Tensor:
        inputs[:] = [hidden]
        return hidden

    with (
        hooks.fed(module, see),
        hooks.altered(module, lambda output: output + path.shift(inputs[0])),
    ):
        yield
