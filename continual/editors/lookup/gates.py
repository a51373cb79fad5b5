"""The width of a record's gate: the cosine γ above which its key is met.

γ lies between the highest cosine of the key with a token on which the record stays silent, and 1.
It is lowered to the tokens that should open the record, as far as `margin_min` allows. Those that
are nearer to a silent token are given up; an edit's own wordings among them get rows of their own,
with the same value. Knows directions; leaves texts and values to others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from continual.editors.lookup.config import LookupConfig

NEAREST = 1.0 - 2.0**-10
"""The highest cosine at which a key is still told from a silent one: rounding moves keys a
little from pass to pass."""
APART = 2.0**-14
"""The cosine by which a gate is below a token that it takes in."""

Silence = Callable[[Tensor], Tensor]
"""Returns for directions [k, d_k] the highest cosine [k] with a silent token."""


@dataclass(frozen=True)
class GatedKeys:
    """The keys of an edit's rows, and their gates."""

    keys: Tensor  # [n, d_k] float32
    gates: Tensor  # [n] float32, γ of each
    silent: float  # the highest cosine of the first key with a silent token
    opened: int  # of the wanted tokens
    wanted: int

    @property
    def share(self) -> float:
        """The share of the wanted tokens that open a row."""
        return self.opened / self.wanted


@dataclass(frozen=True)
class WantedKeys:
    """The keys of the tokens that should open an edit's rows."""

    keys: Tensor  # [m, d_k] float32
    own: int  # the first so many are of the edit's own wordings; the prompt's is the first
    taken: Tensor  # [m] the cosine with the nearest record on the model: a row has to be nearer


def gated_keys(
    wanted: WantedKeys, silence: Silence, config: LookupConfig, narrow: int
) -> GatedKeys | float:
    """Make the rows of an edit. Each of `narrow` earlier tries halves the way from γ to 1.

    Returns the highest silent cosine instead if the prompt's key is not told from a silent one.
    """
    keys, own = wanted.keys, wanted.own
    directions = functional.normalize(keys, dim=1)
    silent = silence(directions[:own])
    rows: list[int] = []
    gates: list[float] = []
    is_open = torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
    for number in range(own):
        floor = max(float(silent[number]), config.gate_min)
        has_key = bool(keys[number].any())
        if is_open[number] or floor > NEAREST or not has_key:
            if number == 0:
                return floor if has_key else 1.0
            continue
        cosines = directions @ directions[number]
        gate = _between(floor, cosines, config, narrow)
        rows.append(number)
        gates.append(gate)
        is_open |= (cosines > gate) & (cosines >= wanted.taken)
    gates_tensor = torch.tensor(gates, dtype=torch.float32, device=keys.device)
    opened = int(is_open.sum())
    return GatedKeys(keys[rows], gates_tensor, float(silent[0]), opened, len(keys))


def _between(floor: float, cosines: Tensor, config: LookupConfig, narrow: int) -> float:
    """Return γ between a floor and 1, below all cosines [m] that it may take in."""
    gate, gate_min = (floor + m * (1.0 - floor) for m in (config.margin, config.margin_min))
    takable = cosines[cosines > gate_min]
    if len(takable):
        gate = max(gate_min, min(gate, float(takable.amin()) - APART))
    return 1.0 - (1.0 - gate) * 0.5**narrow
