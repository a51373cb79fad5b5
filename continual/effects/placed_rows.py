"""Rows that come and go at one place: one of them, or none, answers the query of a token.

The codebook and the look-up are such rows, each a key and a value. They differ in which row answers
a query, and in how its value lands on the output there; where no row answers, the output is the
very same tensor. Knows keys, values and the way they are put on a model; leaves gates, radii and
the way back to each kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar

import torch
from torch import Tensor

from continual.effects import KeptQueries, Reach
from continual.effects.gated import Mount, landing_on
from continual.effects.hearing import Ear, OpenRows
from continual.effects.places import GatePlace
from continual.errors import EditError
from continual.queries.growing import GrowingTensor

NO_ROW = -1


class PlacedRows(ABC):
    """All rows at one place, in the order in which they came."""

    kind: ClassVar[str]
    """The rows' kind in `BESIDE`."""
    name: ClassVar[str]
    """The rows' name in a message: "A look-up's rows"."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._keys = GrowingTensor(torch.empty(0, mount.query_width, device=mount.device))
        self._values = GrowingTensor(torch.empty(0, mount.width, device=mount.device))
        self._is_silent = False
        self._ear = Ear()

    @property
    def place(self) -> GatePlace:
        """See `GatedEffect.place`."""
        return self._mount.place

    @property
    def size(self) -> int:
        """The number of pieces; 0 while they are silenced."""
        return 0 if self._is_silent else self._pieces

    @property
    @abstractmethod
    def _pieces(self) -> int:
        """The number of pieces, silenced or not."""

    @property
    def keys(self) -> Tensor:
        """[rows, d_k] float32."""
        return self._keys.rows

    @property
    def values(self) -> Tensor:
        """[rows, d] float32."""
        return self._values.rows

    def _require_widths(self, keys: Tensor, values: Tensor) -> None:
        """Raise EditError for rows of another width than the model."""
        widths = (keys.shape[1:], values.shape[1:])
        if widths != (self.keys.shape[1:], self.values.shape[1:]):
            raise EditError(
                f"{self.name} have keys of width {tuple(widths[0])} and values of "
                f"{tuple(widths[1])}, the model has {tuple(self.keys.shape[1:])} and "
                f"{tuple(self.values.shape[1:])}: they were made on another model."
            )

    @abstractmethod
    def truncate(self, size: int) -> None:
        """See `Effect.truncate`."""

    def require_way_back(self, size: int) -> None:  # noqa: B027 - nothing to check
        """See `Effect.require_way_back`: every size can be reached."""

    def settle(self) -> None:  # noqa: B027 - nothing to do
        """See `Effect.settle`: nothing is let go."""

    @abstractmethod
    def rows_of(self, queries: Tensor) -> Tensor:
        """Return [r] the row that answers each of the queries [r, d_k]; -1 for none."""

    @abstractmethod
    def may_differ(self, queries: KeptQueries, first: int) -> Tensor:
        """See `GatedEffect.may_differ`."""

    # -- a running model

    @property
    def beside(self) -> Mapping[str, int]:
        """See `Effect.beside`: its pieces."""
        return {self.kind: self.size} if self.size else {}

    def reach(self, first: int = 0) -> Reach:
        """See `Effect.reach`."""
        return Reach(gates=frozenset({self.place} if self.size > first else ()))

    def attached(self) -> AbstractContextManager[None]:
        """See `Effect.attached`."""
        return self._mount.attached(lambda: bool(self.size), self.changed)

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """See `Effect.silenced`."""
        was_silent, self._is_silent = self._is_silent, True
        try:
            yield
        finally:
            self._is_silent = was_silent

    def changed(self, queries: Tensor, output: Tensor) -> Tensor:
        """Return the output [.., d] with values in the tokens whose queries [.., d_k] a row
        answers; the very same tensor if there are none."""
        inputs = queries.detach().reshape(-1, queries.shape[-1])
        rows = self.rows_of(inputs)
        self._ear.hear(lambda: self._open_rows(inputs, rows))
        places = (rows >= 0).nonzero().squeeze(-1).to(output.device)
        if not len(places):
            return output
        flat = output.reshape(-1, output.shape[-1])
        values = landing_on(flat[places], self.values[rows[rows >= 0]])
        return flat.index_copy(0, places, self._landed(flat[places], values)).view(output.shape)

    @abstractmethod
    def _landed(self, output: Tensor, values: Tensor) -> Tensor:
        """Return outputs [r, d] with the values [r, d] of the rows that answer there."""

    def heard(self) -> AbstractContextManager[list[OpenRows]]:
        """See `HeardEffect.heard`."""
        return self._ear.listening()

    @abstractmethod
    def _open_rows(self, queries: Tensor, rows: Tensor) -> OpenRows:
        """Return the rows of patches behind the rows [r] that answer queries [r, d_k]."""
