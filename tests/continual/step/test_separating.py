"""The key of the largest margin, against a support vector machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sklearn.svm import SVC
from torch import Tensor

from continual.editors.tpatcher import separating
from continual.editors.tpatcher.separating import ENOUGH, widest_key
from continual.editors.tpatcher.whitening import QueryWhitening


def supports(memory: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda key: memory[(memory @ key).argmax()]


def drawn(own: int, memory: int, width: int, apart: float, seed: int) -> tuple[Tensor, Tensor]:
    """Own queries and memory around points that lie so far apart, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    shared = 10.0 * torch.randn(width, generator=generator)
    away = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    near = 0.1 * torch.randn(own, width, generator=generator)
    others = torch.randn(memory, width, generator=generator)
    return shared + apart * away + near, shared + others


def margin(key: Tensor, own: Tensor, memory: Tensor) -> float:
    """How far apart the planes through the nearest rows of both sides are; negative: not at all."""
    room = (own.double() @ key.double()).min() - (memory.double() @ key.double()).max()
    return float(room / key.double().norm())


@pytest.mark.parametrize("own", [1, 4])
@pytest.mark.parametrize(("memory", "width"), [(1, 8), (40, 8), (300, 24), (2000, 64)])
@pytest.mark.parametrize("seed", range(3))
def test_the_margin_is_that_of_a_support_vector_machine(own, memory, width, seed):
    queries, others = drawn(own, memory, width, 8.0, seed)
    key = widest_key(queries, queries.mean(0) - others.mean(0), supports(others))
    machine = SVC(kernel="linear", C=1e9, tol=1e-6)
    machine.fit(torch.cat([queries, others]).numpy(), [1] * own + [0] * memory)
    best = margin(torch.tensor(machine.coef_[0]), queries, others)
    assert best > 0
    assert margin(key, queries, others) >= ENOUGH * best
    assert float(key.norm()) == pytest.approx(best, rel=1.0 - ENOUGH)


@pytest.mark.parametrize("own", [1, 4])
@pytest.mark.parametrize("ridge", [0.02, 1.0])
def test_whitened_it_is_that_of_a_machine_on_whitened_rows(own, ridge):
    queries, others = drawn(own, 300, 24, 8.0, 0)
    others = others + 20.0 * (others - others.mean(0))[:, :1]  # one direction outweighs the others
    queries = queries + 20.0 * (queries - others.mean(0))[:, :1]
    variances, axes = torch.linalg.eigh(torch.cov(others.double().T))
    scale = (variances + ridge * variances.mean()).rsqrt()
    mine, theirs = ((rows.double() @ axes) * scale for rows in (queries, others))
    machine = SVC(kernel="linear", C=1e9, tol=1e-6)
    machine.fit(torch.cat([mine, theirs]).numpy(), [1] * own + [0] * len(others))
    best = margin(torch.tensor(machine.coef_[0]), mine, theirs)
    whitening = QueryWhitening.of(others, ridge)
    key = widest_key(queries, queries.mean(0) - others.mean(0), supports(others), whitening)
    found = (key.double() @ axes) / scale
    assert best > 0
    assert margin(found, mine, theirs) >= 0.98 * best
    assert margin(key, queries, others) > 0


def test_scores_are_the_same_in_whitened_coordinates():
    queries, others = drawn(3, 200, 16, 8.0, 1)
    whitening = QueryWhitening.of(others, 0.1)
    assert whitening is not None
    key = torch.randn(16, generator=torch.Generator().manual_seed(2))
    there = whitening.key_there(key)
    torch.testing.assert_close(whitening.key_here(there).float(), key)
    torch.testing.assert_close((whitening.queries(queries) @ there).float(), queries @ key)


@pytest.mark.parametrize("rows", [torch.zeros(0, 4), torch.ones(1, 4), torch.ones(9, 4)])
def test_rows_that_do_not_spread_give_no_whitening(rows):
    assert QueryWhitening.of(rows, 0.1) is None


def test_it_separates_what_the_mean_does_not():
    queries, others = drawn(1, 2000, 64, 6.0, 0)
    stretched = others + 40.0 * (others - others.mean(0))[:, :1]  # along one direction, by far
    own = queries + 2.0 * (stretched[:1] - others[:1])
    mean = own.mean(0) - stretched.mean(0)
    assert margin(mean, own, stretched) < 0
    assert margin(widest_key(own, mean, supports(stretched)), own, stretched) > 0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_query_inside_the_memorys_hull_has_no_key(scale):
    generator = torch.Generator().manual_seed(0)
    others = scale * torch.randn(500, 8, generator=generator)
    own = others.mean(0, keepdim=True)
    key = widest_key(own, others[0], supports(others))
    assert float(key.norm()) < 1e-3 * scale
    same = widest_key(others[:1], others[0], supports(others))
    assert float(same.norm()) < 1e-3 * scale


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_queries_that_are_not_finite_are_no_error(bad):
    own = torch.full((1, 8), bad)
    start = torch.ones(8)
    assert torch.equal(widest_key(own, start, supports(torch.randn(5, 8))), start)


def test_few_rows_are_looked_at():
    queries, others = drawn(1, 20_000, 64, 8.0, 0)
    looked: list[Tensor] = []

    def counted(key: Tensor) -> Tensor:
        looked.append(key)
        return supports(others)(key)

    widest_key(queries, queries.mean(0) - others.mean(0), counted)
    assert len(looked) < separating.STEPS_MAX // 2
