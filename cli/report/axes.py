"""Round numbers for an axis, and the places of values on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_ROUND = (1, 2, 5, 10)


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`, with a tick at every `step`."""

    low: float
    high: float
    step: float

    @property
    def ticks(self) -> list[float]:
        """The values of the ticks; `low` and `high` need not be among them."""
        start, end = (
            math.ceil(self.low / self.step - 1e-9),
            math.floor(self.high / self.step + 1e-9),
        )
        return [number * self.step for number in range(start, end + 1)]

    @property
    def decimals(self) -> int:
        """The number of decimals that tell the ticks apart."""
        return max(0, -math.floor(math.log10(self.step) + 1e-9))

    def share(self, value: float) -> float:
        """Return the place of a value along the axis: 0 at `low`, 1 at `high`."""
        return (value - self.low) / (self.high - self.low)


def around(values: Iterable[float], *, at_least: tuple[float, float], ticks: int = 5) -> Axis:
    """Return an axis that shows all values and a given range, and begins and ends at a tick."""
    numbers = [*values, *at_least]
    low, high = min(numbers), max(numbers)
    step = round_step((high - low) / ticks)
    return Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step)


def counting(last: int, ticks: int) -> Axis:
    """Return an axis of whole numbers from 0 to exactly `last`."""
    return Axis(0, max(1, last), max(1, round_step(max(1, last) / ticks)))


def round_step(least: float) -> float:
    """Return the smallest of …, 0.1, 0.2, 0.5, 1, 2, 5, … that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in _ROUND if factor * power >= least * (1 - 1e-9))
