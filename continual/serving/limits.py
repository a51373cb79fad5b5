"""The `[server]` table: the limits on what clients of `cedit serve` may ask for.

Knows numbers and the rates that callers keep to; leaves refusing to the server.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import ClassVar

from continual.tables import SettingsTable

MEBIBYTE = 1 << 20
MINUTE_S = 60.0
CALLERS_MAX = 20_000  # whose rates are remembered


@dataclass(frozen=True)
class ServerSettings(SettingsTable):
    """The `[server]` table: the largest sizes and rates of requests to `cedit serve`, and its
    start."""

    table: ClassVar[str] = "server"

    requests_per_minute: int = 1200
    """Of one caller: a token, or an address without one. So many at once, and so many more spread
    over each minute; 0 sets no limit. `/health`, `/ready` and `/metrics` are not counted."""
    requests_at_once: int = 64  # of one caller, answered or waiting; 0 sets no limit
    connections_max: int = 512  # requests of all callers at once
    waiting_max: int = 128  # asks that wait for the model; more are refused
    batch_max: int = 16  # answers generated together
    tokens_max: int = 4096  # tokens of one answer, whatever is asked for
    body_bytes_max: int = 4 * MEBIBYTE  # bytes of a request's body
    body_seconds_max: float = 30.0  # seconds for a body to arrive
    answers_max: int = 8  # answers to one prompt (`n`)
    prompts_max: int = 16  # prompts in one request for completions
    stops_max: int = 16  # texts that end an answer (`stop`)
    stop_characters_max: int = 256  # characters of each of these texts
    chances_max: int = 20  # likeliest tokens told for each token (`logprobs`)
    corrections_max: int = 1000  # corrections handed in, or decided on, at once
    page_max: int = 1000  # corrections listed at once
    prepares: bool = True
    """Whether the server measures all probes when it starts, so that its first correction takes no
    longer than the others; it is ready, and answers, when that is done."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name in _UNLIMITED else 1
            if value < least:
                raise self.refused(f"{field.name} = {value}: it is a number from {least} on")


_UNLIMITED = ("requests_per_minute", "requests_at_once", "prepares")
"""Settings that may be 0, or false."""


@dataclass(frozen=True)
class Allowance:
    """The rate of a caller, as it stands with one request more."""

    is_allowed: bool
    remaining: int  # requests that may follow at once
    reset_s: float  # until all may follow at once
    retry_s: float = 0.0  # until the next request is allowed, for one that is not


class Rates:
    """So many requests at once, and so many more spread over each minute, for each caller.

    A request moves the caller's time of full allowance on by its share of a minute (GCRA, the
    leaky bucket of ATM Forum 1996); one that would move it more than a minute ahead is refused.
    Not for several threads.
    """

    def __init__(
        self,
        per_minute: int,
        callers_max: int = CALLERS_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.per_minute = per_minute
        self._callers_max, self._clock = callers_max, clock
        self._full_at: OrderedDict[str, float] = OrderedDict()  # the one seen last in the end

    def take(self, caller: str) -> Allowance:
        """Count a request of a caller, unless its rate is used up."""
        now, share = self._clock(), MINUTE_S / self.per_minute
        full_at = max(now, self._full_at.get(caller, now))
        if (wait := full_at + share - now - MINUTE_S) > share / 1000:  # rounding is no refusal
            return Allowance(False, 0, full_at - now, wait)
        full_at += share
        self._full_at[caller] = full_at
        self._full_at.move_to_end(caller)
        while len(self._full_at) > self._callers_max:
            self._full_at.popitem(last=False)
        used = math.ceil((full_at - now) / share - 1 / 1000)
        return Allowance(True, self.per_minute - used, full_at - now)


class Present:
    """The requests of each caller that are being answered. Not for several threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """The number of all of them."""
        return self._counts.total()

    def of(self, caller: str) -> int:
        """Return the number of a caller's requests."""
        return self._counts[caller]

    @contextmanager
    def one_of(self, caller: str) -> Iterator[None]:
        """Count a request as long as the context is open."""
        self._counts[caller] += 1
        try:
            yield
        finally:
            self._counts[caller] -= 1
            if not self._counts[caller]:
                del self._counts[caller]
