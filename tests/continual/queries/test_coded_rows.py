"""What rows are coded as says what an inner product with them is at most, and hardly more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from continual.queries.coded_rows import FEW, CodedRows

WIDTH = 48
ROUNDED = 1e-5  # float32, in the lengths of row and key
LOOSE = 0.03  # in the same: two roundings to 127 steps, each half a step at most


def drawn(count: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=draw)


def coded(rows: Tensor) -> CodedRows:
    found = CodedRows(rows[0])
    found.append(rows)
    return found


def is_bound(codes: CodedRows, rows: Tensor, keys: Tensor) -> bool:
    exact = keys.double() @ rows.double().T
    lengths = keys.double().norm(dim=1)[:, None] * rows.double().norm(dim=1)
    return bool((codes.bounds(keys).double() >= exact - ROUNDED * lengths).all())


@pytest.mark.parametrize("keys", [1, FEW, FEW + 1, 40])
def test_no_product_is_above_its_bound_and_no_bound_is_far_above(keys):
    rows, asked = drawn(500), drawn(keys, seed=1)
    codes = coded(rows)
    assert is_bound(codes, rows, asked)
    lengths = asked.norm(dim=1)[:, None] * rows.norm(dim=1)
    assert bool((codes.bounds(asked) - asked @ rows.T <= LOOSE * lengths).all())


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e6])
def test_rows_of_any_size_stand_beside_each_other(scale):
    rows = torch.cat([drawn(100), scale * drawn(100, seed=1), torch.zeros(1, WIDTH)])
    asked = torch.cat([drawn(2, seed=2), scale * drawn(2, seed=3)])
    assert is_bound(coded(rows), rows, asked)


def test_a_key_of_zeros_has_bounds_of_zero():
    assert coded(drawn(20)).bounds(torch.zeros(1, WIDTH)).abs().max() < ROUNDED


def test_rows_that_come_are_forgotten_or_come_back_are_followed():
    rows, later, asked = drawn(300), 50 * drawn(100, seed=1), drawn(5, seed=2)
    codes = coded(rows)
    codes.append(later)
    codes.append(later[:0])
    every = torch.cat([rows, later])
    for size in (400, 60, 0, 310):
        codes.truncate(size)
        assert codes.bounds(asked).shape == (len(asked), size)
        assert is_bound(codes, every[:size], asked)


def test_rows_that_are_put_in_the_place_of_others_are_bound_too():
    rows, asked = drawn(300), drawn(5, seed=1)
    codes = coded(rows)
    index = torch.tensor([3, 250, 17])
    rows[index] = 50 * drawn(3, seed=2)  # longer than any before
    codes.put(index, rows[index])
    assert is_bound(codes, rows, asked)
    codes.put(index[:0], rows[:0])
    assert is_bound(codes, rows, asked)
