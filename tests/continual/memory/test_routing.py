"""Routing: the nearest records, the best of them, and the same whichever way it is arrived at."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from continual.effects.records import EmbeddedRecords, MemoryBank, Reading, Record
from continual.memory.inputs import Queries
from continual.memory.routing import NOBODY, RoutedInputs
from continual.patches.memory import MemoryPatch

WIDTH = 6


class Coarse:
    """A scope over given vectors: scores of few values, so that many are equal."""

    fingerprint = "coarse"
    encoder = None
    candidates = 3
    threshold = 0.5

    def __init__(self) -> None:
        self.asked = 0

    def scores(
        self, queries: Queries, records: EmbeddedRecords, pairs: Sequence[tuple[int, int]]
    ) -> Tensor:
        self.asked += len(pairs)
        found = [queries.embeddings[i, 0] @ records.embeddings[j] for i, j in pairs]
        return (torch.stack(found) * 4).round().clamp(0, 4) / 4

    def queries(self, texts: Sequence[str]) -> Queries:
        raise NotImplementedError

    def records(self, records: Sequence[Record]) -> EmbeddedRecords:
        raise NotImplementedError


def vectors(count: int, seed: int, parts: int | None = None) -> Tensor:
    """Of few values, so that many are equally near."""
    shape = (count, WIDTH) if parts is None else (count, parts, WIDTH)
    drawn = torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed)).float()
    drawn[..., 0] += 0.5
    return torch.nn.functional.normalize(drawn, dim=-1)


def patch(ids: Sequence[int], seed: int, removed: Sequence[int] = ()) -> MemoryPatch:
    """Records, of which every third has a least score of its own."""
    minima = [0.75 if i % 3 == 0 else 0.0 for i in ids]
    records = tuple(
        Record(str(i), f"prompt {i}", "x", score_min=m) for i, m in zip(ids, minima, strict=True)
    )
    readings = tuple(Reading("serac", "") for _ in ids)
    kept = EmbeddedRecords(records, vectors(len(ids), seed))
    return MemoryPatch(kept, readings, "coarse", tuple(map(str, removed)))


def asked(count: int, seed: int, parts: int = 1) -> Queries:
    return Queries(tuple(f"input {seed} {i}" for i in range(count)), vectors(count, seed, parts))


def by_hand(bank: MemoryBank, queries: Queries, scope: Coarse, index: int) -> int:
    """The winner, record by record."""
    own = queries.chosen([index])
    near = [(float(own.similarity(bank.embeddings[[p]])), p) for p in bank.places()]
    candidates = sorted(near, reverse=True)[: scope.candidates]
    scored = [(float(scope.scores(own, bank.chosen([p]), [(0, 0)])), s, p) for s, p in candidates]
    scored = [one for one in scored if one[0] >= bank.records[one[2]].score_min]
    score, _, place = max(scored, default=(0.0, 0.0, NOBODY))
    return place if score >= scope.threshold else NOBODY


@pytest.mark.parametrize("seed", range(6))
def test_routes_that_are_followed_are_those_found_from_scratch(seed):
    draw = random.Random(seed)
    bank, scope = MemoryBank(), Coarse()
    routes, batches = RoutedInputs(bank, scope), []
    alive: list[int] = []
    for step in range(25):
        new = list(range(100 * step, 100 * step + draw.choice([0, 1, 1, 4])))
        gone = draw.sample(alive, min(len(alive), draw.choice([0, 0, 1, 3])))
        alive = [i for i in alive if i not in gone] + new
        bank.extend(patch(new, seed * 1000 + step, gone))
        if step % 4 == 0:
            batches.append(asked(7, seed * 1000 + 500 + step, parts=1 + step % 3))
            routes.add(batches[-1])  # in between, some before the others have followed
        if step % 3 != 1:
            before = routes.winners.clone()
            changed = routes.advance()
            assert changed.tolist() == (before != routes.winners).nonzero().flatten().tolist()
            fresh = RoutedInputs(bank, scope)
            for batch in batches:
                fresh.add(batch)
            assert torch.equal(fresh.winners, routes.winners)
            assert torch.equal(fresh.candidates, routes.candidates)
            assert [fresh.route(i) for i in range(len(fresh))] == [
                routes.route(i) for i in range(len(routes))
            ]
    wanted = [by_hand(bank, b, scope, i) for b in batches for i in range(len(b))]
    routes.advance()
    assert routes.winners.tolist() == wanted
    assert len({*wanted}) > 3


def test_an_input_without_records_is_nobodys():
    routes = RoutedInputs(MemoryBank(), Coarse())
    routes.add(asked(3, 0))
    assert routes.winners.tolist() == [NOBODY] * 3 and routes.route(0) is None


def test_inputs_that_a_new_record_is_far_from_are_not_scored_again():
    bank, scope = MemoryBank(), Coarse()
    near = asked(20, 1)
    bank.extend(
        MemoryPatch(
            EmbeddedRecords(
                tuple(Record(str(i), "p", "x") for i in range(20)), near.embeddings[:, 0]
            ),
            (Reading("serac", ""),) * 20,
        )
    )
    routes = RoutedInputs(bank, scope)
    routes.add(near)
    scope.asked = 0
    far = -near.embeddings[:1, 0]
    bank.extend(
        MemoryPatch(EmbeddedRecords((Record("far", "p", "x"),), far), (Reading("serac", ""),))
    )
    furthest = [near.similarity(bank.embeddings[:20]).topk(3).values[:, -1]]
    expected = int((near.similarity(far)[:, 0] >= furthest[0]).sum())
    routes.advance()
    assert scope.asked == expected < 20


def test_similarity_does_not_depend_on_what_is_computed_together():
    generator = torch.Generator().manual_seed(0)
    one = torch.nn.functional.normalize(torch.randn(50, 2, 384, generator=generator), dim=-1)
    other = torch.nn.functional.normalize(torch.randn(70, 384, generator=generator), dim=-1)
    queries = Queries(tuple(map(str, range(50))), one)
    whole = queries.similarity(other)
    for i in range(0, 50, 7):
        for j in range(0, 70, 9):
            assert queries.chosen([i]).similarity(other[j : j + 1]).item() == whole[i, j].item()
    assert (whole - (one.double() @ other.double().T).amax(1)).abs().max() < 1e-5


def test_many_records_are_searched_as_if_each_were_looked_at():
    generator = torch.Generator().manual_seed(3)
    vectors = torch.nn.functional.normalize(torch.randn(400, 16, generator=generator), dim=-1)
    vectors[200:220] = vectors[7]  # more than are looked at exactly, all the same
    bank, scope = MemoryBank(), Coarse()
    records = tuple(Record(str(i), f"prompt {i}", "x") for i in range(400))
    bank.extend(
        MemoryPatch(EmbeddedRecords(records, vectors), (Reading("serac", ""),) * 400, "coarse")
    )
    bank.extend(MemoryPatch(removed=("3", "7", "219")))
    queries = Queries(tuple(map(str, range(400))), vectors.unsqueeze(1))
    routes = RoutedInputs(bank, scope)
    routes.add(queries)
    assert routes.winners.tolist() == [by_hand(bank, queries, scope, i) for i in range(400)]
    assert routes.winners[7] == 218 and routes.winners[200] == 218
