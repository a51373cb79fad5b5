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

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from continual.effects import LOOKUP, KeptQueries
from continual.effects.gated import Mount
from continual.effects.hearing import OpenRows
from continual.effects.placed_rows import NO_ROW, PlacedRows
from continual.queries.growing import GrowingTensor

ROUNDING = 2.0**-14
"""More than float32 loses in a cosine."""
COSINES_MAX = 2**20  # in one piece


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


class Lookup(PlacedRows):
    """All records at one place, in the order in which they came. A piece is a record."""

    kind = LOOKUP
    name = "A look-up's rows"

    def __init__(self, mount: Mount) -> None:
        super().__init__(mount)
        self._directions = GrowingTensor(self.keys)
        self._gates = GrowingTensor(self.values[:, 0])
        self._width = mount.width

    # -- the records

    @property
    def _pieces(self) -> int:
        return len(self._gates)

    @property
    def gates(self) -> Tensor:
        """[records] float32, γ of each."""
        return self._gates.rows

    def extend(self, patch: LookupRows) -> tuple[Tensor, Tensor, Tensor]:
        """Append a patch's rows; return their keys, values and gates as they now stand.

        Raises EditError for rows of another width than the model.
        """
        self._require_widths(patch.keys, patch.values)
        keys = self._keys.append(patch.keys)
        self._directions.append(functional.normalize(keys, dim=1))
        return keys, self._values.append(patch.values), self._gates.append(patch.gates)

    def truncate(self, size: int) -> None:
        """Forget all records but the first `size`."""
        for part in (self._keys, self._directions, self._values, self._gates):
            part.truncate(size)

    # -- look-up

    def rows_of(self, queries: Tensor) -> Tensor:
        """Return [r] the record that each of the queries [r, d_k] opens; -1 for none."""
        records = torch.full((len(queries),), NO_ROW, dtype=torch.long, device=queries.device)
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
        best, winner = -torch.inf, NO_ROW
        for place in (cosines >= cosines.max() - 2 * ROUNDING).nonzero().flatten().tolist():
            cosine = cosine_of(query, self.keys[place])
            if cosine >= best:
                best, winner = cosine, place
        return winner if winner >= 0 and best > float(self.gates[winner]) else NO_ROW

    def highest(self, queries: Tensor) -> Tensor:
        """Return [r] the highest cosine of each of the queries [r, d_k] with a key, as float32 has
        it; -1 without records."""
        lowest = queries.new_full((len(queries), 1), -1.0)
        cosines = functional.normalize(queries, dim=1) @ self._directions.rows[: self.size].T
        return torch.cat([cosines, lowest], 1).amax(1)

    def added_at(self, query: Tensor) -> Tensor:
        """Return the value [d] that a query [d_k] opens; zeros for none."""
        record = int(self.rows_of(query[None]))
        return self.values[record].clone() if record >= 0 else self.values.new_zeros(self._width)

    def _landed(self, output: Tensor, values: Tensor) -> Tensor:
        return output + values

    def _open_rows(self, queries: Tensor, rows: Tensor) -> OpenRows:
        """Return the records with the cosines of query and key."""
        tokens = (rows >= 0).nonzero().squeeze(-1)
        opened = rows[tokens]
        pairs = zip(queries[tokens].float(), self.keys[opened], strict=True)
        cosines = queries.new_tensor([cosine_of(query, key) for query, key in pairs])
        return OpenRows(len(queries), tokens, opened, cosines)

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
