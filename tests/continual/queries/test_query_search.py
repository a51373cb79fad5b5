"""A search by inner product finds what scoring every row in full finds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from continual.queries.search import ROWS_MIN, SearchedQueries

MANY = 2 * ROWS_MIN


def rows_of(count: int, width: int = 48, rank: int = 6, seed: int = 0) -> Tensor:
    """Rows that differ in a few directions mostly, about a common centre."""
    draw = torch.Generator().manual_seed(seed)
    spread = torch.randn(count, rank, generator=draw) @ torch.randn(rank, width, generator=draw)
    noise = torch.randn(count, width, generator=draw)
    return spread + 0.05 * noise + 3 * torch.randn(width, generator=draw)


def keys_of(rows: Tensor, count: int = 5) -> Tensor:
    centred = rows[:: len(rows) // count][:count] - rows.mean(0)
    return centred / centred.square().sum(1, keepdim=True)


def searched(*parts: Tensor) -> SearchedQueries:
    found = SearchedQueries(parts[0])
    for part in parts:
        found.append(part)
    return found


@pytest.mark.parametrize("count", [1, 7, ROWS_MIN - 1, MANY])
@pytest.mark.parametrize("rank", [6, 48])
def test_the_highest_score_is_that_of_all_rows_scored_in_float64(count, rank):
    rows = rows_of(count, rank=rank)
    keys = keys_of(rows_of(50, rank=rank, seed=1))
    exact = (keys.double() @ rows.double().T).amax(1).float()
    assert torch.equal(searched(rows).highest(keys), exact)


@pytest.mark.parametrize("count", [40, MANY])
@pytest.mark.parametrize("rank", [6, 48])
@pytest.mark.parametrize("keys_count", [1, 5, 30])
def test_all_rows_above_a_floor_are_found_and_none_clearly_below(count, rank, keys_count):
    rows = rows_of(count, rank=rank)
    keys = keys_of(rows, keys_count)
    scores = keys.double() @ rows.double().T
    floors = scores.quantile(0.9, dim=1)
    found = set(searched(rows).above(keys, floors.float()).tolist())
    above = (scores > floors[:, None]).any(0).nonzero().flatten().tolist()
    nearly = (scores > floors[:, None] - 1e-3 * scores.abs().max()).any(0)
    assert set(above) <= found <= set(nearly.nonzero().flatten().tolist())


def test_rows_that_come_later_and_rows_that_are_cut_are_followed():
    first, later = rows_of(MANY), rows_of(3 * MANY, seed=2)
    keys = keys_of(later)
    rows = searched(first)
    rows.highest(keys)  # from here on it prunes
    rows.append(later)
    rows.cut(10, MANY + 20)
    left = torch.cat([first[:10], later[20:]])
    assert torch.equal(rows.rows, left)
    assert torch.equal(rows.highest(keys), (keys.double() @ left.double().T).amax(1).float())


def test_what_is_found_does_not_depend_on_the_way_the_rows_came():
    rows = rows_of(MANY)
    keys = keys_of(rows)
    slowly = SearchedQueries(rows)
    for part in rows.split(500):
        slowly.append(part)
        slowly.highest(keys)
    assert torch.equal(slowly.highest(keys), searched(rows).highest(keys))


def test_one_row_far_above_all_others_is_not_pruned():
    rows = rows_of(MANY)
    rows[1234] = 100 * torch.randn(48, generator=torch.Generator().manual_seed(3))
    keys = rows[1234:1235].clone()
    found = searched(rows)
    assert found.above(keys, 0.9 * keys.square().sum(1)).tolist() == [1234]


def test_without_rows_nothing_is_found():
    rows = SearchedQueries(torch.empty(0, 4))
    keys = torch.ones(2, 4)
    assert rows.highest(keys).tolist() == [-torch.inf, -torch.inf]
    assert rows.above(keys, torch.zeros(2)).tolist() == []


def test_a_key_that_is_no_number_gives_no_number():
    assert searched(rows_of(MANY)).highest(torch.full((1, 48), torch.nan)).isnan().all()


@pytest.mark.parametrize("count", [40, MANY])
def test_rows_that_are_put_in_the_place_of_others_are_found(count):
    rows = rows_of(count)
    keys = keys_of(rows)
    found = searched(rows)
    found.highest(keys)  # the heads are fitted to the rows before
    index = torch.tensor([0, count // 2, count - 1])
    rows[index] = 20 * rows_of(3, seed=4)
    found.put(index, rows[index])
    exact = keys.double() @ rows.double().T
    assert torch.equal(found.highest(keys), exact.amax(1).float())
    floors = exact.sort(1, descending=True).values[:, 8].float()
    expected = (exact > floors[:, None].double()).any(0).nonzero().squeeze(-1)
    assert set(expected.tolist()) <= set(found.above(keys, floors).tolist())
