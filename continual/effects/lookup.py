"""A look-up at a place: where a query points the way of a key, a value is added to the output.

NeuralDB (ICLR 2026) replaces the sum of MEMIT's outer products by a search: a record has a key k, a
value r and a gate γ. For a query x, j* = argmax cos(x, k_j) over all records, the latest of equal
ones; r of j* is added if cos(x, k_j*) > γ of j*, and nothing otherwise: the output is then the very
same tensor. γ = 1 never opens. A record is a row, and depends on no other one: a look-up without
some rows is the one that never had them.

Cosines are decided in float64, pair by pair, so that the answer to a query depends neither on the
other queries of its pass nor on records further off. Knows rows and cosines; leaves files and
owners to `patches.lookup`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from continual.effects import LOOKUP, KeptQueries, Reach
from continual.effects.gated import Mount, landing_on
from continual.effects.places import GatePlace
from continual.errors import EditError
from continual.queries.growing import GrowingTensor

ROUNDING = 2.0**-14
"""More than float32 loses in a cosine."""
COSINES_MAX = 2**20  # in one piece
NO_RECORD = -1


class LookupRows(Protocol):
    """n rows that are put on."""

    @property
    def keys(self) -> Tensor:
        """[n, d_k] none of length zero."""

    @property
    def values(self) -> Tensor:
        """[n, d]"""

    @property
    def gates(self) -> Tensor:
        """[n] γ of each, in [-1, 1]."""


class Lookup:
    """All records at one place, in the order in which they came."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        keys = torch.empty(0, mount.query_width, device=mount.device)
        values = torch.empty(0, mount.width, device=mount.device)
        self._keys, self._directions = GrowingTensor(keys), GrowingTensor(keys)
        self._values, self._gates = GrowingTensor(values), GrowingTensor(values[:, 0])
        self._width = mount.width
        self._is_silent = False

    # -- the records

    @property
    def place(self) -> GatePlace:
        """See `GatedEffect.place`."""
        return self._mount.place

    @property
    def size(self) -> int:
        """The number of records; 0 while the look-up is silenced."""
        return 0 if self._is_silent else len(self._gates)

    @property
    def keys(self) -> Tensor:
        """[records, d_k] float32."""
        return self._keys.rows

    @property
    def values(self) -> Tensor:
        """[records, d] float32."""
        return self._values.rows

    @property
    def gates(self) -> Tensor:
        """[records] float32, γ of each."""
        return self._gates.rows

    def extend(self, patch: LookupRows) -> tuple[Tensor, Tensor, Tensor]:
        """Append a patch's rows; return their keys, values and gates as they now stand.

        Raises EditError for rows of another width than the model.
        """
        widths = (patch.keys.shape[1:], patch.values.shape[1:])
        if widths != (self.keys.shape[1:], self.values.shape[1:]):
            raise EditError(
                f"A look-up's rows have keys of width {tuple(widths[0])} and values of "
                f"{tuple(widths[1])}, the model has {tuple(self.keys.shape[1:])} and "
                f"{tuple(self.values.shape[1:])}: they were made on another model."
            )
        keys = self._keys.append(patch.keys)
        self._directions.append(functional.normalize(keys, dim=1))
        return keys, self._values.append(patch.values), self._gates.append(patch.gates)

    def truncate(self, size: int) -> None:
        """Forget all records but the first `size`."""
        for part in (self._keys, self._directions, self._values, self._gates):
            part.truncate(size)

    def require_way_back(self, size: int) -> None:
        """See `Effect.require_way_back`: every size can be reached."""

    def settle(self) -> None:
        """See `Effect.settle`: nothing is let go."""

    # -- look-up

    def records_of(self, queries: Tensor) -> Tensor:
        """Return [r] the record that each of the queries [r, d_k] opens; -1 for none."""
        records = torch.full((len(queries),), NO_RECORD, dtype=torch.long, device=queries.device)
        size = max(1, COSINES_MAX // max(1, self.size))
        for start in range(0, len(queries) if self.size else 0, size):
            rows = queries[start : start + size].float()
            cosines = functional.normalize(rows, dim=1) @ self._directions.rows[: self.size].T
            near = (~(cosines <= self.gates - ROUNDING)).any(1)  # a NaN may be anything
            for row in near.nonzero().flatten().tolist():
                records[start + row] = self._opened(rows[row], cosines[row])
        return records

    def _opened(self, query: Tensor, cosines: Tensor) -> int:
        """Return the record that a query [d_k] opens, -1 for none; `cosines` [records] are its
        cosines as float32 has them."""
        best, winner = -torch.inf, NO_RECORD
        for place in (cosines >= cosines.max() - 2 * ROUNDING).nonzero().flatten().tolist():
            cosine = cosine_of(query, self.keys[place])
            if cosine >= best:
                best, winner = cosine, place
        return winner if winner >= 0 and best > float(self.gates[winner]) else NO_RECORD

    def highest(self, queries: Tensor) -> Tensor:
        """Return [r] the highest cosine of each of the queries [r, d_k] with a key, as float32 has
        it; -1 without records."""
        lowest = queries.new_full((len(queries), 1), -1.0)
        cosines = functional.normalize(queries, dim=1) @ self._directions.rows[: self.size].T
        return torch.cat([cosines, lowest], 1).amax(1)

    def added_at(self, query: Tensor) -> Tensor:
        """Return the value [d] that a query [d_k] opens; zeros for none."""
        record = int(self.records_of(query[None]))
        return self.values[record].clone() if record >= 0 else self.values.new_zeros(self._width)

    # -- a running model

    @property
    def beside(self) -> Mapping[str, int]:
        """See `Effect.beside`: its rows."""
        return {LOOKUP: self.size} if self.size else {}

    def reach(self, first: int = 0) -> Reach:
        """See `Effect.reach`."""
        return Reach(gates=frozenset({self.place} if self.size > first else ()))

    def attached(self) -> AbstractContextManager[None]:
        """See `Effect.attached`."""
        return self._mount.attached(lambda: bool(self.size), self.added)

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """See `Effect.silenced`."""
        was_silent, self._is_silent = self._is_silent, True
        try:
            yield
        finally:
            self._is_silent = was_silent

    def added(self, queries: Tensor, output: Tensor) -> Tensor:
        """Return the output [.., d] with values added in the rows whose queries [.., d_k] open a
        record; the very same tensor if there are none."""
        records = self.records_of(queries.detach().reshape(-1, queries.shape[-1]))
        rows = (records >= 0).nonzero().squeeze(-1).to(output.device)
        if not len(rows):
            return output
        flat = output.reshape(-1, output.shape[-1])
        values = landing_on(flat[rows], self.values[records[records >= 0]])
        return flat.index_copy(0, rows, flat[rows] + values).view(output.shape)

    def may_differ(self, queries: KeptQueries, first: int) -> Tensor:
        """See `GatedEffect.may_differ`.

        A new record j opens on a query x only if cos(x, k_j) > γ_j. It silences x, or takes it over
        from an earlier record i, only if cos(x, k_j) is at least cos(x, k_i) > γ_i.
        """
        differs = torch.zeros(len(queries), dtype=torch.bool)
        lengths = queries.squares.cpu().sqrt()
        directions = self._directions.rows[first : self.size].cpu()
        floors = self._floors(first).cpu()
        for part, part_floors in zip(directions.split(64), floors.split(64), strict=True):
            least = (part_floors[:, None] - 2 * ROUNDING) * lengths
            differs |= (~(queries.bounds(part).cpu() <= least)).any(0)
        return differs

    def _floors(self, first: int) -> Tensor:
        """Return, for each record from `first` on, the least cosine at which it may change the
        answer to a query."""
        new, old = self._directions.rows[first : self.size], self._directions.rows[:first]
        floors, gates = self.gates[first : self.size].clone(), self.gates[:first]
        if not len(old) or not len(new):
            return floors
        half_angles = gates.clamp(-1.0, 1.0).acos()  # of the cone in which an old record opens
        widest = (2 * half_angles).clamp(max=torch.pi).cos()
        meets = new @ old.T >= widest - ROUNDING
        taken = torch.where(meets, gates, torch.inf).amin(1)
        return torch.minimum(floors, taken)


def cosine_of(query: Tensor, key: Tensor) -> float:
    """Return the cosine of a query and a key, [d_k] each, in float64; NaN for a query of zeros."""
    x, k = query.double(), key.double()
    cosine = torch.dot(x, k) / (torch.dot(x, x).sqrt() * torch.dot(k, k).sqrt())
    return float(cosine.clamp(-1.0, 1.0))  # rounding must not take it beyond a gate of 1
