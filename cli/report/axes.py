"""Round numbers for an axis, and the places of values on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_ROUND = (1, 2, 5, 10)


@dataclass(frozen=True)
class ChartAxis:
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

    def text(self, tick: float) -> str:
        """Return the number beside a tick."""
        return f"{tick:.{self.decimals}f}"


@dataclass(frozen=True)
class LogAxis:
    """An axis of seconds from 10**`first` to 10**`last`, with a tick at every power of ten."""

    first: int
    last: int

    @property
    def ticks(self) -> list[float]:
        """The powers of ten."""
        return [10.0**power for power in range(self.first, self.last + 1)]

    def share(self, value: float) -> float:
        """Return the place of a value along the axis; values below it lie at its beginning."""
        power = math.log10(value) if value > 0 else self.first
        return max(0.0, (power - self.first) / (self.last - self.first))

    def text(self, tick: float) -> str:
        """Return the duration beside a tick."""
        return f"{tick:g} s" if tick >= 1 else f"{tick * 1000:g} ms"


def around(values: Iterable[float], *, at_least: tuple[float, float], ticks: int = 5) -> ChartAxis:
    """Return an axis that shows all values and a given range, and begins and ends at a tick."""
    numbers = [*values, *at_least]
    low, high = min(numbers), max(numbers)
    step = round_step((high - low) / ticks)
    return ChartAxis(
        math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step
    )


def logarithmic(values: Iterable[float], *, least: float) -> LogAxis:
    """Return a logarithmic axis for the largest value and the smallest one from `least` on."""
    above = [value for value in values if value >= least] or [least]
    exponent = math.floor(math.log10(min(above)) + 1e-9)
    return LogAxis(exponent, max(exponent + 1, math.ceil(math.log10(max(above)) - 1e-9)))


def counting(last: int, ticks: int) -> ChartAxis:
    """Return an axis of whole numbers from 0 to exactly `last`."""
    return ChartAxis(0, max(1, last), max(1, round_step(max(1, last) / ticks)))


def round_step(least: float) -> float:
    """Return the smallest of …, 0.1, 0.2, 0.5, 1, 2, 5, … that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in _ROUND if factor * power >= least * (1 - 1e-9))
