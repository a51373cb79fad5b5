"""Sums added to a parameter of a model, by patches of any kind.

A parameter is edited by float32 additions in one fixed order: the same bytes on every machine.
Going back never subtracts: the remaining additions are made to the base again. Knows one parameter;
leaves the making of an addition to the kinds of patch, the choice of parameter to `EditedModel`,
and matrices that nothing is written into to `factors`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from continual.effects import Reach
from continual.errors import EditError, ModelError


class Addition(Protocol):
    """The change of one parameter by one patch."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parameter."""

    @property
    def is_dense(self) -> bool:
        """True if it takes as much room as the parameter."""

    @property
    def product(self) -> tuple[Tensor, Tensor] | None:
        """The factors [inputs, n] and [n, outputs] of which it is the product; None if it has
        none."""

    def add_to(self, total: Tensor) -> None:
        """Change the sum [float32] in place, always with the same bytes."""


@dataclass(frozen=True)
class Delta:
    """A dense difference, added in one float32 addition."""

    tensor: Tensor  # float32

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Addition`."""
        return tuple(self.tensor.shape)

    @property
    def is_dense(self) -> bool:
        """See `Addition`."""
        return True

    @property
    def product(self) -> tuple[Tensor, Tensor] | None:
        """See `Addition`: none."""
        return None

    def add_to(self, total: Tensor) -> None:
        """See `Addition`."""
        total.add_(self.tensor.to(total))


@dataclass(frozen=True)
class Total(Delta):
    """A sum that replaces everything before it."""

    def add_to(self, total: Tensor) -> None:
        """See `Addition`."""
        total.copy_(self.tensor)


class ParameterEdits(ABC):
    """The additions of patches to one parameter, in order; an `Effect`.

    The matrix of a linear layer is seen as [inputs, outputs], however the model stores it; `turned`
    leads from the one form to the other.
    """

    def __init__(self, shape: tuple[int, ...], block: int, *, is_turned: bool) -> None:
        self.shape = shape
        """The shape of the parameter as it is seen here."""
        self._block, self._is_turned = block, is_turned
        self._keys: list[Tensor | None] = []  # of every patch
        self._gradient_rows: list[Tensor | None] = []  # of every patch

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of patches."""

    @property
    @abstractmethod
    def base(self) -> Tensor:
        """The parameter as the base model has it."""

    @property
    @abstractmethod
    def change(self) -> Tensor:
        """The sum of all additions, float32."""

    @property
    @abstractmethod
    def sum(self) -> Tensor:
        """The sum of base and all additions, float32."""

    @property
    def stays_factors(self) -> bool:
        """True if additions are kept as factors, whatever room they take."""
        return False

    @property
    def keys(self) -> Tensor:
        """The keys [m, inputs] that came with the patches, in order."""
        parts = [keys for keys in self._keys if keys is not None]
        return torch.cat([self._no_keys(), *parts])

    @abstractmethod
    def _no_keys(self) -> Tensor:
        """Return keys [0, inputs] on the parameter's device."""

    @property
    def gradient_rows(self) -> Tensor:
        """The rows [m, inputs + outputs] that came with patches by gradients, in order, on the CPU:
        an input of the matrix, and beside it the loss's gradient at the output."""
        parts = [rows.cpu() for rows in self._gradient_rows if rows is not None]
        return torch.cat([torch.empty(0, sum(self.shape)), *parts])

    def turned(self, tensor: Tensor) -> Tensor:
        """Turn a tensor of the parameter's shape from the model's form into the one used here, or
        back: a view."""
        return tensor.T if self._is_turned else tensor

    @abstractmethod
    def add(
        self,
        addition: Addition,
        keys: Tensor | None = None,
        gradient_rows: Tensor | None = None,
    ) -> Tensor:
        """Make a patch's addition, and keep the `keys` and `gradient_rows` that came with it;
        return the numbers by which the patch now stands in the model.

        Raises EditError if it is of another shape than the parameter, or cannot be made to it.
        """

    def _require_shape(self, addition: Addition) -> None:
        """Raise EditError for an addition of another shape than the parameter."""
        if addition.shape != self.shape:
            raise EditError(
                f"A patch is for a parameter {addition.shape}, the model has {self.shape}: it was "
                "made on another model."
            )

    @abstractmethod
    def settle(self) -> None:
        """See `Effect.settle`."""

    @abstractmethod
    def require_way_back(self, size: int) -> None:
        """Raise ModelError if the first `size` patches cannot be kept alone any more."""

    @abstractmethod
    def truncate(self, size: int) -> None:
        """Forget all patches but the first `size`; see `require_way_back`."""

    def reach(self, first: int = 0) -> Reach:
        """See `Effect.reach`."""
        return Reach(blocks=frozenset({self._block} if self.size > first else ()))

    @abstractmethod
    def attached(self) -> AbstractContextManager[None]:
        """See `Effect.attached`."""

    @property
    @abstractmethod
    def beside(self) -> Mapping[str, int]:
        """See `Effect.beside`."""

    @abstractmethod
    def silenced(self) -> AbstractContextManager[None]:
        """See `Effect.silenced`."""

    @abstractmethod
    def restore(self) -> None:
        """Put the parameter into the model again, after another change of it."""


class EditedWeight(ParameterEdits):
    """A parameter of a model: the base, and the additions to it, in order.

    The sum is kept in float32 whatever the model's own precision. It stands in the model while the
    effect is attached; otherwise the base does.
    """

    def __init__(self, weight: Tensor, block: int, *, is_turned: bool = False) -> None:
        """`weight` is a view of the model's own parameter, transposed if `is_turned`; `block` is
        the first block whose output depends on it."""
        super().__init__(tuple(weight.shape), block, is_turned=is_turned)
        self._weight = weight.detach()
        self._base = self._weight.clone()
        self._sum = self._base.float().clone()
        self._start: Tensor | None = None  # the sum before `_added`; None: the base
        self._settled = 0  # patches in `_start`
        self._added: list[Addition] = []
        self._before: Tensor | None = None  # the sum without the last addition
        self._is_shown = False

    @property
    def size(self) -> int:
        """The number of patches in the sum."""
        return self._settled + len(self._added)

    @property
    def base(self) -> Tensor:
        """The parameter as the base model has it."""
        return self._base

    @property
    def change(self) -> Tensor:
        """See `ParameterEdits`."""
        return self._sum - self._base.float()

    @property
    def sum(self) -> Tensor:
        """The sum of base and all additions, float32."""
        return self._sum

    def _no_keys(self) -> Tensor:
        return self._sum.new_empty(0, len(self._sum))

    def add(
        self,
        addition: Addition,
        keys: Tensor | None = None,
        gradient_rows: Tensor | None = None,
    ) -> Tensor:
        """Make a patch's addition, and keep the `keys` and `gradient_rows` that came with it;
        return the parameter as it now stands in the model.

        Raises EditError if it is of another shape than the parameter.
        """
        self._require_shape(addition)
        self._before = None if addition.is_dense else self._sum.clone()
        addition.add_to(self._sum)
        self._added.append(addition)
        self._keys.append(keys)
        self._gradient_rows.append(gradient_rows)
        return self._refreshed()

    def settle(self) -> None:
        """Let go of dense additions: only the base can then be reached behind here.

        Keeping all of them in memory would take a multiple of the history's own size.
        """
        if any(addition.is_dense for addition in self._added):
            self._start, self._settled = self._sum.clone(), self.size
            self._added.clear()

    def require_way_back(self, size: int) -> None:
        """Raise ModelError if the first `size` patches cannot be kept alone any more."""
        if 0 < size < self._settled:
            raise ModelError(
                f"{size} patches of {self.size} cannot be kept: the dense ones among them were let "
                "go. Take all of them off, and stand at the revision again."
            )

    def truncate(self, size: int) -> None:
        """Forget all patches but the first `size`; see `require_way_back`."""
        if size == self.size:
            return
        if size == self.size - 1 and self._before is not None:
            self._sum = self._before
        else:
            self._rebuild(size)
        self._before = None
        del self._added[size - self._settled :], self._keys[size:], self._gradient_rows[size:]
        self._refreshed()

    def _rebuild(self, size: int) -> None:
        """Make the sum of the first `size` patches: zero, or at least the settled ones."""
        if size == 0:
            self._start, self._settled = None, 0
        self._sum = (self._base.float() if self._start is None else self._start).clone()
        for addition in self._added[: size - self._settled]:
            addition.add_to(self._sum)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """See `Effect.attached`: the sum stands in the model."""
        self._show()
        try:
            yield
        finally:
            self._hide()

    @property
    def beside(self) -> Mapping[str, int]:
        """See `Effect.beside`: nothing."""
        return {}

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """See `Effect.silenced`."""
        if not self._is_shown:
            yield
            return
        self._hide()
        try:
            yield
        finally:
            self._show()

    def _show(self) -> None:
        self._is_shown = True
        self._refreshed()

    def _hide(self) -> None:
        self._weight.copy_(self._base)
        self._is_shown = False

    def restore(self) -> None:
        """Write the parameter into the model again, after another change of it."""
        self._weight.copy_(self._sum if self._is_shown else self._base)

    def _refreshed(self) -> Tensor:
        """Return the parameter in the model's precision; write it into the model if it is shown."""
        if not self._is_shown:
            return self._sum.to(self._weight.dtype)
        self._weight.copy_(self._sum)
        return self._weight
