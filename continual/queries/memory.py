"""The queries on which a new neuron must stay silent: training inputs, and every edit before it.

After an edit that moved the queries they are read anew when somebody looks at them: most editors
never do. Knows queries at one FFN site and their owners; nothing of patches or of the model.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile

import torch
from torch import Tensor

from continual.queries.search import SearchedQueries

ReadQueries = Callable[[], tuple[Tensor, Mapping[str, Tensor]]]
"""Reads all training queries [m, d], and the queries [r, d] of each edit by its owner."""


class ProtectedQueries:
    """Training queries, then the queries of the active edits in the order in which they came."""

    def __init__(self, training: Tensor) -> None:
        self._mean = training.mean(0)
        self._training = SearchedQueries(training)
        self._training.append(training)
        self._places = list(range(len(training)))  # original places of the remaining rows
        self._edits = SearchedQueries(training)
        self._near = SearchedQueries(training)  # during an edit; see `beside`
        self._counts: dict[str, int] = {}  # queries by owner, in the order of the rows
        self._read: ReadQueries | None = None  # not None: all rows are due to be read anew
        self._fresh: dict[str, Tensor] = {}  # queries of owners that came since then

    @property
    def training(self) -> Tensor:
        """[m, d] the training queries that no edit has contradicted."""
        self._bring_up()
        return self._training.rows

    @property
    def edits(self) -> Tensor:
        """[p, d] the queries of the active edits."""
        self._bring_up()
        return self._edits.rows

    def contradict(self, rows: Iterable[int]) -> None:
        """Drop training queries for good, by their original places: an edit asks the same with
        another answer. Places dropped before are no error."""
        for place in rows:
            row = bisect_left(self._places, place)
            if self._places[row : row + 1] == [place]:
                del self._places[row]
                if self._read is None:
                    self._training.cut(row, row + 1)

    def recapture(self, training: Tensor, edits: Mapping[str, Tensor]) -> None:
        """Replace all queries after an edit of matrices. `training` has all training queries, as in
        the beginning, and the contradicted ones stay out; `edits` has every edit's, in order."""
        self._read, self._fresh = None, {}
        self._mean = training.mean(0)
        self._training.replace(training[self._places])
        self._edits.replace(torch.cat([training[:0], *edits.values()]))
        self._counts = {owner: len(queries) for owner, queries in edits.items()}

    def recapture_later(self, read: ReadQueries) -> None:
        """Replace all queries as `recapture` does, once somebody looks at them. Until then `read`
        has to give the same bits, for all owners of now; edits may come and go meanwhile."""
        self._read, self._fresh = read, {}

    def _bring_up(self) -> None:
        """Read the queries that are due."""
        if self._read is None:
            return
        training, edits = self._read()
        fresh = self._fresh
        self.recapture(training, {o: fresh[o] if o in fresh else edits[o] for o in self._counts})

    @property
    def owners(self) -> tuple[str, ...]:
        """The edits that have queries here, in order."""
        return tuple(self._counts)

    def remember(self, owner: str, queries: Tensor) -> None:
        """Append an edit's queries [r, d]."""
        self._counts[owner] = len(queries)
        if self._read is None:
            self._edits.append(queries)
        else:
            self._fresh[owner] = queries

    def forget(self, owner: str) -> None:
        """Drop an edit's queries; the others keep their order. Unknown owners are no error."""
        if owner not in self._counts:
            return
        if self._read is not None:
            del self._counts[owner]
            self._fresh.pop(owner, None)
            return
        later_owners = takewhile(
            lambda name: name != owner, reversed(self._counts)
        )  # the latest go first
        end = len(self._edits) - sum(self._counts[name] for name in later_owners)
        self._edits.cut(end - self._counts.pop(owner), end)

    def part(
        self, training: Iterable[int], owners: Collection[str], near: Tensor
    ) -> ProtectedQueries:
        """Return a memory of some training queries, by their original places, of these owners'
        queries, and of `near` [r, d]. Its mean is that of the whole."""
        self._bring_up()
        places = set(training)
        rows = [row for row, place in enumerate(self._places) if place in places]
        memory = ProtectedQueries(
            self.training if len(rows) == len(self._places) else self.training[rows]
        )
        memory._mean = self._mean
        start = 0
        for owner, count in self._counts.items():
            if owner in owners:
                memory.remember(owner, self.edits[start : start + count])
            start += count
        memory._near.append(near)
        return memory

    @contextmanager
    def beside(self, queries: Tensor) -> Iterator[None]:
        """Remember more queries [r, d] while the `with` lasts: the neighbours of an edit."""
        neighbours = self._near
        try:
            self._near = SearchedQueries(queries)
            self._near.append(queries)
            yield
        finally:
            self._near = neighbours

    def highest_scores(self, keys: Tensor) -> Tensor:
        """Return max q·k over all the queries, for keys [n, d] → [n]; -inf for an empty memory."""
        self._bring_up()
        scores = torch.maximum(self._training.highest(keys), self._edits.highest(keys))
        return torch.maximum(scores, self._near.highest(keys)) if len(self._near) else scores

    def supporting(self, key: Tensor) -> Tensor:
        """Return [r, d] one row of each part of the memory that has any; one of them has the
        highest score with the key [d]."""
        self._bring_up()
        parts = (self._training, self._edits, self._near)
        return torch.cat([part.supporting(key) for part in parts])

    def mean(self) -> Tensor:
        """Return [d] the mean of the training queries; zero where there are none."""
        self._bring_up()
        return self._mean if len(self._training) else torch.zeros_like(self._mean)

    def all(self) -> Tensor:
        """Return all queries [m + p + r, d]."""
        return torch.cat([self.training, self.edits, self._near.rows])
