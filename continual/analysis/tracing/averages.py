"""Averages of the traces of a set of facts: indirect effects by block and group of tokens.

A fact gives one number for each group and block, the mean over the group's tokens; an average is
over the facts that have tokens in the group, with the 95 % interval of a normal mean. Facts that
the model does not answer, or that hardly depend on their subject, are counted and not averaged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from continual.analysis.tracing.results import (
    DIGITS,
    GROUPS,
    TRACED,
    UNKNOWN,
    WEAK,
    FactTrace,
)

NORMAL_95 = 1.959964
"""Standard errors on each side of a mean in which it lies 95 times of a hundred."""


@dataclass(frozen=True)
class MeanWithInterval:
    """A mean, and the half of its 95 % interval; the half is zero for one number."""

    mean: float
    half: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> MeanWithInterval:
        """Average some numbers."""
        spread = stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else 0.0
        return cls(round(fmean(numbers), DIGITS), round(NORMAL_95 * spread, DIGITS))


@dataclass(frozen=True)
class GroupEffect:
    """The average indirect effect at one group of tokens, block by block."""

    facts: int  # that have tokens in the group
    blocks: tuple[int, ...]  # that were traced
    means: tuple[MeanWithInterval, ...]  # of each of these blocks

    @property
    def peak(self) -> tuple[int, MeanWithInterval]:
        """The block with the largest average, and that average."""
        places = zip(self.blocks, self.means, strict=True)
        return max(places, key=lambda place: place[1].mean)


@dataclass(frozen=True)
class TraceAverages:
    """The averages of a set's traces."""

    counts: Mapping[str, int]  # facts by outcome
    clean: MeanWithInterval | None  # probability; None without a traced fact
    corrupted: MeanWithInterval | None
    total_effect: MeanWithInterval | None
    effects: Mapping[str, Mapping[str, GroupEffect]]  # by kind and group
    peaks: Mapping[str, tuple[float, float]]
    """By kind, the mean effect at each fact's own peak, and at the same places with the second
    seed: the first is chosen as the largest, the second was not."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `cedit trace --json` prints."""
        return asdict(self)

    def strongest(self, kind: str) -> tuple[str, int] | None:
        """Return the group and the block where a kind has its largest average effect."""
        groups = self.effects.get(kind, {})
        if not groups:
            return None
        group = max(groups, key=lambda name: groups[name].peak[1].mean)
        return group, groups[group].peak[0]


def averaged(traces: Sequence[FactTrace]) -> TraceAverages:
    """Average the traces of a set of facts on one state of the model."""
    counts = {name: sum(t.outcome == name for t in traces) for name in (TRACED, UNKNOWN, WEAK)}
    traced = [trace for trace in traces if trace.outcome == TRACED]
    if not traced:
        return TraceAverages(counts, None, None, None, {}, {})
    return TraceAverages(
        counts,
        MeanWithInterval.of([trace.clean.probability for trace in traced]),
        MeanWithInterval.of([trace.floor for trace in traced]),
        MeanWithInterval.of([trace.total_effect for trace in traced]),
        {m.kind: _by_group(traced, m.kind) for m in traced[0].maps},
        {m.kind: _at_peaks(traced, m.kind) for m in traced[0].maps},
    )


def _by_group(traces: Sequence[FactTrace], kind: str) -> dict[str, GroupEffect]:
    """Average the effects of a kind by group; groups without a token are left out."""
    numbers: dict[str, list[list[float]]] = {group: [] for group in GROUPS}
    first_map = traces[0].map(kind)
    assert first_map is not None
    for trace in traces:
        for group, tokens in trace.groups().items():
            if tokens:
                numbers[group].append(group_effects(trace, kind, tokens))
    return {
        group: GroupEffect(
            len(rows),
            first_map.blocks,
            tuple(MeanWithInterval.of(column) for column in zip(*rows, strict=True)),
        )
        for group, rows in numbers.items()
        if rows
    }


def group_effects(trace: FactTrace, kind: str, tokens: Sequence[int]) -> list[float]:
    """Return the mean indirect effect of some tokens at each block."""
    trace_map = trace.map(kind)
    assert trace_map is not None
    floor = trace.floor
    rows = [trace_map.probability[token] for token in tokens]
    return [fmean(column) - floor for column in zip(*rows, strict=True)]


def _at_peaks(traces: Sequence[FactTrace], kind: str) -> tuple[float, float]:
    """Return the mean effect at each fact's own peak, with its noise and with the second seed's."""
    first, second = [], []
    for trace in traces:
        trace_map = trace.map(kind)
        assert trace_map is not None
        assert trace.second is not None
        first.append(trace.effect(kind, *trace_map.peak()))
        second.append(trace.second.peaks[kind] - trace.second.corrupted.probability)
    return round(fmean(first), DIGITS), round(fmean(second), DIGITS)
