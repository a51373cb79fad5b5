"""The ridge system and the lifelong normaliser, against slow computations of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from continual.errors import CeditError
from continual.gradients.normaliser import CHUNK, EPSILON, Normaliser
from continual.gradients.ridge import Prior, Unsolvable, dual, left_factor, primal


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moment_of(width: int) -> Tensor:
    rows = draw(50, width, seed=9).double()
    return rows.T @ rows / 50


def slow_left(inputs: Tensor, ridge: float, past: Tensor | None, moment: Tensor | None) -> Tensor:
    """(λI + μC₀ + Σ mᵀm + Σ hᵀh)⁻¹Hᵀ, summed row by row, by numpy's general solver."""
    width = inputs.shape[1]
    system = ridge * np.eye(width)
    if moment is not None:
        system = system + moment.numpy()
    for row in [*inputs, *([] if past is None else past)]:
        system = system + np.outer(row.double().numpy(), row.double().numpy())
    return torch.from_numpy(np.linalg.solve(system, inputs.double().numpy().T))


@pytest.mark.parametrize("with_moment", [False, True])
@pytest.mark.parametrize("past_count", [0, 3, 40])
def test_the_left_factor_solves_the_system(past_count: int, with_moment: bool) -> None:
    inputs, past = draw(5, 24), draw(past_count, 24, seed=1)
    moment = 0.3 * moment_of(24) if with_moment else None
    found = left_factor(inputs, Prior(0.7, moment), past)
    expected = slow_left(inputs, 0.7, past, moment)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("ridge", [1.0, 1e-3])
@pytest.mark.parametrize("with_moment", [False, True])
def test_primal_and_dual_are_one_update(ridge: float, with_moment: bool) -> None:
    rows = draw(20, 32).double()
    prior = Prior(ridge, moment_of(32) if with_moment else None)
    one, other = dual(rows, 6, prior), primal(rows, 6, prior)
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_turn_after_turn_with_memory_is_one_solve_over_all_of_them() -> None:
    """Recursive least squares: with total shifts, each turn asks for the rest of its own."""
    width, outputs, ridge = 40, 6, 0.5
    turns = [(draw(4, width, seed=t), draw(4, outputs, seed=50 + t).double()) for t in range(15)]
    update, past = torch.zeros(width, outputs, dtype=torch.float64), draw(0, width)
    for inputs, totals in turns:
        residual = totals - inputs.double() @ update
        update += left_factor(inputs, Prior(ridge), past) @ residual
        past = torch.cat([past, inputs])
    every = torch.cat([inputs for inputs, _ in turns])
    wanted = torch.cat([totals for _, totals in turns])
    expected = slow_left(every, ridge, None, None) @ wanted
    torch.testing.assert_close(update, expected, rtol=1e-8, atol=1e-10)


def test_memory_keeps_what_earlier_edits_give() -> None:
    past, inputs, shifts = draw(8, 64, seed=3), draw(2, 64), draw(2, 10, seed=4).double()
    moves = [
        float((past.double() @ left_factor(inputs, Prior(0.01), memory) @ shifts).norm())
        for memory in (None, past)
    ]
    assert moves[1] < 0.01 * moves[0]


def test_the_order_of_a_batch_changes_the_update_by_rounding_alone() -> None:
    inputs, shifts = draw(6, 20), draw(6, 4, seed=1).double()
    order = [4, 0, 5, 2, 1, 3]
    one = left_factor(inputs, Prior(1.0)) @ shifts
    other = left_factor(inputs[order], Prior(1.0)) @ shifts[order]
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("place", ["inputs", "past", "moment"])
def test_numbers_that_are_not_finite_are_refused(place: str) -> None:
    tensors = {"inputs": draw(3, 8), "past": draw(2, 8, seed=1), "moment": moment_of(8)}
    tensors[place][0, 0] = torch.inf
    with pytest.raises(Unsolvable, match="NaN or infinity") as found:
        left_factor(tensors["inputs"], Prior(1.0, tensors["moment"]), tensors["past"])
    assert isinstance(found.value, CeditError)


def test_statistics_that_are_no_second_moment_are_refused() -> None:
    with pytest.raises(Unsolvable, match="positive definite"):
        left_factor(draw(3, 8), Prior(1.0, -5.0 * torch.eye(8).double()))


def test_the_normaliser_is_a_mean_and_a_deviation_of_two_passes() -> None:
    rows = 3.0 + 2.0 * draw(37, 5)
    found = Normaliser.of([rows[:1], rows[1:20], rows[20:]])
    exact = rows.double().numpy()
    np.testing.assert_allclose(found.mean.numpy(), exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.deviation.numpy(), exact.std(0, ddof=1), rtol=1e-8)
    expected = (exact - exact.mean(0)) / (exact.std(0, ddof=1) + EPSILON)
    np.testing.assert_allclose(found.normalised(rows).numpy(), expected, rtol=1e-7, atol=1e-9)


def test_the_normaliser_is_the_running_one_of_the_paper() -> None:
    """Welford's batches: μ += m·δ̄/n', M2 += m·var + n·m·δ̄²/n'."""
    turns = [draw(size, 4, seed=size).double().numpy() for size in (1, 6, 2, 30)]
    count, mean, squares = 0, np.zeros(4), np.zeros(4)
    for turn in turns:
        size, delta = len(turn), turn.mean(0) - mean
        total = count + size
        squares = squares + size * turn.var(0) + count * size * delta**2 / total
        mean, count = mean + size * delta / total, total
    found = Normaliser.of([torch.from_numpy(turn).float() for turn in turns])
    assert found.count == count
    np.testing.assert_allclose(found.mean.numpy(), mean, rtol=1e-5, atol=1e-7)
    deviation = np.sqrt(squares / (count - 1 + EPSILON))
    np.testing.assert_allclose(found.deviation.numpy(), deviation, rtol=1e-5)


def test_the_normaliser_has_the_same_bits_however_its_rows_came() -> None:
    rows = draw(2 * CHUNK + 17, 3)
    whole = Normaliser.of([rows])
    pieces = Normaliser.of([rows[:5], rows[5 : CHUNK + 1], rows[CHUNK + 1 :]])
    assert torch.equal(whole.mean, pieces.mean)
    assert torch.equal(whole.deviation, pieces.deviation)


def test_one_row_alone_is_normalised_to_zeros() -> None:
    row = draw(1, 4)
    assert not bool(Normaliser.of([row]).normalised(row).any())
