"""Routing: decides which record answers an input, and follows that while records come and go.

An input's candidates are the `scope.candidates` active records nearest to it; of equally near ones
the latest. The candidate with the highest score wins the input, if the score reaches the threshold;
of equal scores the nearer one. A record with a least score of its own wins no input below it. Knows
vectors and scores; nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.effects.records import MemoryBank, Record
from continual.memory.index import Found, RecordIndex
from continual.memory.inputs import Queries
from continual.memory.scope import Scope
from continual.picture_marks import keys_in, shows
from continual.queries.growing import GrowingTensor

NOBODY = -1  # in the place of a record
NEAR = 1e-4  # float32 products of unit vectors are off by less
SPARE = 8  # records beyond the candidates, compared exactly
PRODUCTS_MAX = 2**24  # in one piece


@dataclass(frozen=True)
class Route:
    """The record that an input is about."""

    place: int  # in the bank
    record: Record
    method: str  # of its reader
    score: float


class RoutedInputs:
    """Inputs and their routes.

    A new record is compared with every input. Only inputs that gain it as a candidate, or lose one,
    are looked at again.
    """

    def __init__(self, bank: MemoryBank, scope: Scope) -> None:
        self._bank, self._scope = bank, scope
        self._texts: list[str] = []
        self._embeddings: GrowingTensor | None = None  # [n, s, d]
        count = scope.candidates
        self._candidates = GrowingTensor(torch.empty(0, count, dtype=torch.long))  # nearest first
        self._similarities = GrowingTensor(torch.empty(0, count, dtype=torch.float64))
        self._scores = GrowingTensor(torch.empty(0, count))
        self._winners = GrowingTensor(torch.empty(0, dtype=torch.long))
        self._followed = len(bank.records)  # places that the routes reflect

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def winners(self) -> Tensor:
        """[n] the place of the record that each input is about; `NOBODY` for none."""
        return self._winners.rows

    @property
    def candidates(self) -> Tensor:
        """[n, candidates] their places, nearest first; `NOBODY` where there are fewer."""
        return self._candidates.rows

    def route(self, index: int) -> Route | None:
        """Return the route of an input; None for one that no record is about."""
        place = int(self._winners.rows[index])
        if place == NOBODY:
            return None
        column = int((self._candidates.rows[index] == place).nonzero()[0])
        score = float(self._scores.rows[index, column])
        return Route(place, self._bank.records[place], self._bank.readings[place].method, score)

    def add(self, queries: Queries, found: Found | None = None) -> None:
        """Take in inputs, routed as the bank is now. `found` spares a look at each record, where it
        is certain that no other can be a candidate."""
        start, count = len(self), len(queries)
        if not count:
            return
        self._texts += queries.texts
        self._keep(queries.embeddings)
        width = self._scope.candidates
        self._candidates.append(torch.full((count, width), NOBODY))
        self._similarities.append(torch.full((count, width), -torch.inf, dtype=torch.float64))
        self._scores.append(torch.full((count, width), -torch.inf))
        self._winners.append(torch.full((count,), NOBODY))
        index = torch.arange(start, start + count)
        if any(map(keys_in, queries.texts)):
            found = None  # the index knows words alone
        if found is not None and found.places.shape[1]:
            self._look_at(index, found.places, queries)
            index = index[self._uncertain(index, found)]
        if len(index):
            self._look(index, self._bank.places())

    def advance(self) -> Tensor:
        """Follow the bank, and return the inputs [m] that have another winner now."""
        winners_before = self._winners.rows.clone()
        index = self._bereft()
        places = self._bank.places()
        self._look(torch.arange(len(self)), [p for p in places if p >= self._followed])
        self._forget(index)
        self._look(index, places)
        self._followed = len(self._bank.records)
        return (winners_before != self._winners.rows).nonzero().squeeze(-1)

    def _bereft(self) -> Tensor:
        """Return the inputs that have lost a candidate."""
        candidates = self._candidates.rows
        if not len(self._bank.active) or not len(candidates):
            return torch.empty(0, dtype=torch.long)
        is_gone = ~self._bank.active[candidates.clamp(min=0)] & (candidates != NOBODY)
        return is_gone.any(1).nonzero().squeeze(-1)

    def _forget(self, index: Tensor) -> None:
        self._candidates.rows[index] = NOBODY
        self._similarities.rows[index] = -torch.inf
        self._scores.rows[index] = -torch.inf
        self._winners.rows[index] = NOBODY

    def _keep(self, embeddings: Tensor) -> None:
        """Append inputs. All get as many parts as the longest; the whole stands for missing
        parts."""
        rows = embeddings[:0] if self._embeddings is None else self._embeddings.rows
        parts = max(rows.shape[1], embeddings.shape[1])
        if self._embeddings is None or rows.shape[1] < parts:
            self._embeddings = GrowingTensor(_filled(embeddings[:0], parts))
            self._embeddings.append(_filled(rows, parts))
        self._embeddings.append(_filled(embeddings, parts))

    def _queries(self, index: Sequence[int]) -> Queries:
        assert self._embeddings is not None
        texts = tuple(self._texts[i] for i in index)
        return Queries(texts, self._embeddings.rows[list(index)])

    # -- looking at records

    def _look(self, index: Tensor, places: Sequence[int]) -> None:
        """Compare some inputs [m] with the records at these places, which they may know. A record
        is compared with inputs that show its pictures, and no others."""
        for group, shown_places in self._by_pictures(index, places):
            self._look_among(group, shown_places)

    def _by_pictures(
        self, index: Tensor, places: Sequence[int]
    ) -> Iterator[tuple[Tensor, Sequence[int]]]:
        """Divide inputs by the pictures that they show, each group with the records that show the
        same."""
        prompts = (self._bank.records[place].prompt for place in places)
        if not any(map(shows, prompts)) and not any(shows(self._texts[i]) for i in index.tolist()):
            yield index, places
            return
        records: dict[frozenset[str], list[int]] = {}
        for place in places:
            records.setdefault(keys_in(self._bank.records[place].prompt), []).append(place)
        inputs: dict[frozenset[str], list[int]] = {}
        for number in index.tolist():
            inputs.setdefault(keys_in(self._texts[number]), []).append(number)
        for pictures, numbers in inputs.items():
            yield torch.tensor(numbers), records.get(pictures, [])

    def _look_among(self, index: Tensor, places: Sequence[int]) -> None:
        """Compare some inputs [m] with all the records at these places."""
        if not len(index) or not places:
            return
        assert self._embeddings is not None
        parts, width = self._embeddings.rows.shape[1:]
        exact_products = (self._scope.candidates + SPARE) * width
        for part in index.split(max(1, PRODUCTS_MAX // (parts * max(len(places), exact_products)))):
            self._compare(part, places)

    def _look_at(self, index: Tensor, places: Tensor, queries: Queries) -> None:
        """Compare inputs [m] with records [m, n] of their own; one that comes twice counts once."""
        places = places.sort(dim=1).values
        is_repeat = torch.zeros_like(places, dtype=torch.bool)
        is_repeat[:, 1:] = places[:, 1:] == places[:, :-1]
        similarity = queries.similarity_of(self._bank.embeddings[places])
        count = min(places.shape[1], self._scope.candidates)
        maxima, column = _highest(similarity.masked_fill(is_repeat, -torch.inf), count)
        self._merge(index, maxima, places.gather(1, column), queries)

    def _uncertain(self, index: Tensor, found: Found) -> Tensor:
        """Return [m] bool: true if a record that was not found may be a candidate of the input."""
        similarity_min = self._similarities.rows[index, -1]
        return found.beyond.isfinite() & (similarity_min <= found.beyond.double() + NEAR)

    def _compare(self, index: Tensor, places: Sequence[int]) -> None:
        vectors = self._vectors(places)
        estimates = self._near(index, vectors)  # [m, r]
        is_reached = estimates.amax(1).double() >= self._similarities.rows[index, -1] - NEAR
        index, estimates = index[is_reached], estimates[is_reached]
        if not len(index):
            return
        queries = self._queries(index.tolist())
        maxima, column = self._nearest(queries, vectors, estimates)
        self._merge(index, maxima, torch.tensor(places)[column], queries)

    def _vectors(self, places: Sequence[int]) -> Tensor:
        """Return [r, d] the embeddings at these places, in ascending order."""
        embeddings = self._bank.embeddings
        return embeddings if len(places) == len(embeddings) else embeddings[list(places)]

    def _near(self, index: Tensor, vectors: Tensor) -> Tensor:
        """Return [m, r] the similarities by a product that is quick and nearly exact."""
        assert self._embeddings is not None
        rows = self._embeddings.rows
        inputs = rows if len(index) == len(rows) else rows[index]
        return (inputs @ vectors.T).amax(1)

    def _nearest(self, queries: Queries, vectors: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        """Return the similarities [m, c] of the nearest records, and their columns.

        Only records that are nearly nearest are compared exactly, if it is certain that no other
        can be nearer.
        """
        count = min(near.shape[1], self._scope.candidates)
        if near.shape[1] > count + SPARE:
            estimates, column = near.topk(count + SPARE, dim=1)
            column = column.sort(dim=1).values  # the latest last, as in the whole
            similarities = queries.similarity_of(vectors[column])
            maxima, order = _highest(similarities, count)
            if bool((estimates[:, -1].double() < maxima[:, -1] - NEAR).all()):
                return maxima, column.gather(1, order)
        return _highest(queries.similarity(vectors), count)

    def _merge(self, index: Tensor, best: Tensor, named: Tensor, queries: Queries) -> None:
        """Put records [m, c] among the candidates, as far as they belong there, and score them."""
        candidates = self._candidates.rows[index]
        repeats = (named[:, :, None] == candidates[:, None, :]).any(2)  # candidates already
        similarity = torch.cat(
            [self._similarities.rows[index], best.masked_fill(repeats, -torch.inf)], 1
        )
        places = torch.cat([candidates, named.masked_fill(repeats, NOBODY)], 1)
        scores = torch.cat(
            [self._scores.rows[index], torch.full(named.shape, torch.nan, dtype=torch.float32)], 1
        )
        order = _order(similarity, places)[:, : self._scope.candidates]
        places, similarity = places.gather(1, order), similarity.gather(1, order)
        places = places.masked_fill(similarity.isinf(), NOBODY)
        scores = scores.gather(1, order).masked_fill(places == NOBODY, -torch.inf)
        self._score(scores, places, queries)
        self._candidates.rows[index] = places
        self._similarities.rows[index] = similarity
        self._scores.rows[index] = scores
        self._winners.rows[index] = self._won(places, scores)

    def _score(self, scores: Tensor, places: Tensor, queries: Queries) -> None:
        """Fill in the scores [m, c] that are not known yet."""
        pairs = scores.isnan().nonzero()
        if not len(pairs):
            return
        pair_places = places[pairs[:, 0], pairs[:, 1]]
        unique_places, column = pair_places.unique(return_inverse=True)
        records = self._bank.chosen(unique_places.tolist())
        query_pairs = list(zip(pairs[:, 0].tolist(), column.tolist(), strict=True))
        pair_scores = self._scope.scores(queries, records, query_pairs).float()
        minima = torch.tensor([record.score_min for record in records.records])[column]
        pair_scores = pair_scores.masked_fill(pair_scores < minima, -torch.inf)
        scores[pairs[:, 0], pairs[:, 1]] = pair_scores

    def _won(self, places: Tensor, scores: Tensor) -> Tensor:
        """Return [m] the winners; `max` names the first of equal ones, which is the nearest."""
        score_max = scores.amax(1, keepdim=True)
        column = (scores == score_max).long().argmax(1, keepdim=True)
        winners = places.gather(1, column).squeeze(1)
        return winners.masked_fill(score_max.squeeze(1) < self._scope.threshold, NOBODY)


def routes_of(
    texts: Iterable[str], bank: MemoryBank, scope: Scope, index: RecordIndex | None = None
) -> list[Route | None]:
    """Return the route of each input, as the bank is now. The index changes only the speed."""
    routes, queries = RoutedInputs(bank, scope), scope.queries(list(texts))
    matches = None
    if index is not None and index.is_used and len(queries):
        matches = index.nearest(queries, scope.candidates + SPARE)
    routes.add(queries, matches)
    return [routes.route(number) for number in range(len(routes))]


def _highest(found: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the highest `count` of each row and their columns; the last of equal ones."""
    values, column = found.flip(1).sort(dim=1, descending=True, stable=True)
    return values[:, :count], found.shape[1] - 1 - column[:, :count]


def _order(similarity: Tensor, places: Tensor) -> Tensor:
    """Return the columns by similarity, the highest first; of equal ones the latest place first."""
    recency = places.argsort(dim=1, descending=True, stable=True)
    order = similarity.gather(1, recency).argsort(dim=1, descending=True, stable=True)
    return recency.gather(1, order)


def _filled(embeddings: Tensor, parts: int) -> Tensor:
    """Return [n, parts, d]; the whole, which comes first, stands for missing parts."""
    count = parts - embeddings.shape[1]
    return torch.cat([embeddings, embeddings[:, :1].expand(-1, count, -1)], 1)
