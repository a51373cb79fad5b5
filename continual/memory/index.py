"""The records of a memory in a vector index, when they are many: it finds the ones near to an
input.

Knows how an index follows a bank: by the requests' ids, as places differ between a history that was
walked and one that was taken from snapshots. The index is a cache, kept with the store for the
place in the journal that it stands for, and made anew where it does not fit.

Up to `store.vectors.CROSSOVER` records it compares an input with each. Among more it may look at
short codes of all, and at few records in full. No bound rules out the others, so a near record may
be missed, as often as the index's recall says. A store that cannot accept that says ``exact =
true`` under `[memory]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from continual.effects.records import MemoryBank
from continual.memory import INDEX_FILE
from continual.memory.inputs import Queries
from store import Store
from store.errors import StoreError
from store.vectors import CROSSOVER, Stamp, VectorIndex

_ID_DIGITS = 15  # hexadecimal: they fit into an int64


@dataclass(frozen=True)
class Found:
    """Records that are near to each of q inputs, and a bound on the nearness of all others."""

    places: Tensor  # [q, n]; some may come twice
    beyond: Tensor
    """[q] the cosine that no other exceeds, up to float32's rounding; -inf: there is no other, or
    none is to be looked for."""


class RecordIndex:
    """Follows one bank, whose embeddings are all of one scope."""

    def __init__(
        self, bank: MemoryBank, records_min: int = CROSSOVER, *, is_exact: bool = False
    ) -> None:
        """Follow `bank`, for use from `records_min` records on; `is_exact` compares each record."""
        self._bank, self.records_min = bank, records_min
        self._crossover = None if is_exact else CROSSOVER
        self._index: VectorIndex | None = None
        self._places: dict[int, int] = {}  # by the index's own ids
        self._state: object = None  # of the bank, at the last update

    @property
    def is_used(self) -> bool:
        """True if there are at least `records_min` records."""
        return len(self._bank) >= self.records_min

    def nearest(self, queries: Queries, count: int) -> Found:
        """Return `count` records for each part of an input; parts may share some."""
        index = self._followed()
        vectors, inverse = _distinct(queries.embeddings)
        hits = index.search(vectors, count)
        places = [self._places[identity] for identity in hits.ids.flatten().tolist()]
        by_vector = torch.tensor(places).reshape(hits.ids.shape)
        is_whole = hits.ids.shape[1] == len(index)
        bounds = torch.full((len(queries),), -torch.inf)
        if not is_whole and index.is_exact:
            bounds = hits.scores[:, -1][inverse].amax(1)
        return Found(by_vector[inverse].flatten(1), bounds)

    def _followed(self) -> VectorIndex:
        """Return the index of the present records of the bank."""
        bank = self._bank
        if self._index is None:
            self._index = VectorIndex(bank.embeddings.shape[1], self._crossover)
        if self._state == bank.state:
            return self._index
        places = {_number(bank.records[place].id): place for place in bank.places()}
        stale_ids = [i for i, place in self._places.items() if places.get(i) != place]
        new_ids = [i for i, place in places.items() if self._places.get(i) != place]
        self._index.remove(stale_ids)
        self._index.add(new_ids, bank.embeddings[[places[i] for i in new_ids]])
        self._places, self._state = places, bank.state
        return self._index

    # -- kept with the store

    def load(self, store: Store, scope: str) -> None:
        """Load the kept index, if it is of head, where the bank has to be."""
        bank = self._bank
        if self.is_used and self._index is None:
            path, width = store.cache / INDEX_FILE, bank.embeddings.shape[1]
            stamp = _stamp(store, scope)
            self._index = VectorIndex.load(path, stamp, width, len(bank), self._crossover)
            if self._index is not None:
                self._places = {_number(bank.records[p].id): p for p in bank.places()}
                self._state = bank.state

    def save(self, store: Store, scope: str) -> None:
        """Keep the index, if there is one; the bank is at head. Nothing depends on it."""
        if not self.is_used or self._index is None or not store.writable:
            return
        try:
            path = store.cache / INDEX_FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            self._followed().save(path, _stamp(store, scope))
        except (StoreError, OSError):
            return


def _distinct(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return the vectors [u, d] of inputs [q, s, d], each once, and the number of each part's
    vector [q, s]: an input of one sentence has the same vector twice."""
    queries, parts, width = embeddings.shape
    vectors, inverse = embeddings.reshape(-1, width).unique(dim=0, return_inverse=True)
    return vectors, inverse.reshape(queries, parts)


def _stamp(store: Store, scope: str) -> Stamp:
    head = store.head
    return Stamp(head.seq, head.id, scope)


def _number(identity: str) -> int:
    return int(identity[:_ID_DIGITS], 16)
