"""Rates of callers, against a plain count of the requests that were let through."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from continual.errors import CeditError
from continual.serving.limits import MINUTE_S, Present, Rates, ServerSettings


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_so_many_at_once_and_so_many_more_over_each_minute() -> None:
    clock = Clock()
    rates = Rates(6, clock=clock)
    allowed = [rates.take("a") for _ in range(8)]
    assert [one.is_allowed for one in allowed] == [True] * 6 + [False] * 2
    assert [one.remaining for one in allowed] == [5, 4, 3, 2, 1, 0, 0, 0]
    assert allowed[-1].retry_s == pytest.approx(MINUTE_S / 6)
    assert rates.take("b").is_allowed
    clock.now += allowed[-1].retry_s
    assert [rates.take("a").is_allowed for _ in range(2)] == [True, False]
    clock.now += 2 * MINUTE_S
    assert [rates.take("a").is_allowed for _ in range(7)] == [True] * 6 + [False]


@pytest.mark.parametrize("seed", range(5))
def test_no_span_of_time_has_more_than_its_share(seed: int) -> None:
    draw, clock, limit = random.Random(seed), Clock(), 10
    rates, let_through = Rates(limit, clock=clock), []
    for _ in range(2000):
        clock.now += draw.choice((0.0, draw.expovariate(1.0), draw.expovariate(0.05)))
        if rates.take("a").is_allowed:
            let_through.append(clock.now)
    for i, start in enumerate(let_through):
        for count, end in enumerate(let_through[i:], 1):
            assert count <= limit + (end - start) * limit / MINUTE_S + 1e-6
    pauses = [later - earlier for earlier, later in pairwise(let_through)]
    assert max(pauses) < 200  # and nobody is shut out


def test_a_wait_as_told_is_long_enough_and_no_longer() -> None:
    clock = Clock()
    rates = Rates(7, clock=clock)
    while (told := rates.take("a")).is_allowed:
        clock.now += 0.37
    clock.now += told.retry_s * 0.99
    assert not rates.take("a").is_allowed
    clock.now += told.retry_s * 0.01
    assert rates.take("a").is_allowed


def test_only_so_many_callers_are_remembered() -> None:
    rates = Rates(1, callers_max=3, clock=Clock())
    for caller in "abcd":
        assert rates.take(caller).is_allowed
    assert rates.take("a").is_allowed  # forgotten
    assert not rates.take("d").is_allowed


def test_who_is_present_is_counted_by_caller() -> None:
    present = Present()
    with pytest.raises(ZeroDivisionError), present.one_of("b"), present.one_of("a"):
        with present.one_of("a"):
            assert (present.of("a"), present.total) == (2, 3)
        assert (present.of("a"), present.total) == (1, 2)
        raise ZeroDivisionError
    assert (present.of("a"), present.total) == (0, 0)


@pytest.mark.parametrize(
    "table", [{"requests_per_minute": -1}, {"answers_max": 0}, {"rate": 1}, {"page_max": "x"}]
)
def test_a_wrong_limit_is_refused_by_name(table: dict[str, object]) -> None:
    with pytest.raises(CeditError, match=rf"\[server\].*{next(iter(table))}"):
        ServerSettings.of(table)
