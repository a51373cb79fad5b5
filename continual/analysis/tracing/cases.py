"""Cases: the ways of restoring that one pass works out side by side, and their rows.

A case restores some tokens of each corrupted run. Its rows are tokens of these runs, in the order
(case, draw, position). Knows positions; leaves states to the runners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Case = tuple[int, ...]
"""The positions of the tokens that are restored."""
IN_ATTENTION = 4
"""Tokens that stand side by side in attention, at most, for each row of a pass."""


@dataclass(frozen=True)
class CaseRows:
    """The rows of some cases: of each case's draws, the tokens at some positions."""

    cases: tuple[Case, ...]
    positions: tuple[tuple[int, ...], ...]  # of each case, ascending
    draws: int  # S
    length: int  # N, tokens of the whole sequence
    device: torch.device

    @classmethod
    def whole(
        cls, cases: Sequence[Case], draws: int, length: int, device: torch.device
    ) -> CaseRows:
        """Return all tokens of every run."""
        every = tuple(tuple(range(length)) for _ in cases)
        return cls(tuple(cases), every, draws, length, device)

    @classmethod
    def ends(cls, cases: Sequence[Case], draws: int, length: int, device: torch.device) -> CaseRows:
        """Return the tokens from each case's first restored one on: no other token can differ in a
        causal model."""
        ends = tuple(tuple(range(min(case), length)) for case in cases)
        return cls(tuple(cases), ends, draws, length, device)

    @classmethod
    def restored_alone(
        cls, cases: Sequence[Case], draws: int, length: int, device: torch.device
    ) -> CaseRows:
        """Return the restored tokens alone."""
        return cls(tuple(cases), tuple(tuple(sorted(c)) for c in cases), draws, length, device)

    @cached_property
    def _table(self) -> Tensor:
        """[R, 4]: case, draw, position, and whether the row is restored."""
        entries = [
            (index, draw, position, position in case)
            for index, (case, places) in enumerate(zip(self.cases, self.positions, strict=True))
            for draw in range(self.draws)
            for position in places
        ]
        return torch.tensor(entries, dtype=torch.long)

    def __len__(self) -> int:
        return len(self._table)

    @cached_property
    def draw(self) -> Tensor:
        """[R]: the draw of each row."""
        return self._table[:, 1].to(self.device)

    @cached_property
    def position(self) -> Tensor:
        """[R]: the position of each row in its sequence."""
        return self._table[:, 2].to(self.device)

    @cached_property
    def restored(self) -> Tensor:
        """[K]: the rows of restored tokens."""
        return self._table[:, 3].nonzero().flatten().to(self.device)

    @cached_property
    def slots(self) -> Tensor:
        """[R]: the places of the rows among all tokens of all runs, [cases · draws · N]."""
        run = self._table[:, 0] * self.draws + self._table[:, 1]
        return (run * self.length + self._table[:, 2]).to(self.device)

    @cached_property
    def sources(self) -> Tensor:
        """[R]: the places of the rows among the tokens of the corrupted runs, [draws · N]."""
        return self.draw * self.length + self.position

    def at(self, positions: Sequence[int]) -> Tensor:
        """Return the rows [cases · draws · len(positions)] at these positions, which every case
        has."""
        wanted = torch.isin(self._table[:, 2], torch.tensor(positions))
        return wanted.nonzero().flatten().to(self.device)


def chunked(
    cases: Sequence[Case], draws: int, length: int, rows_max: int, *, whole: bool
) -> list[list[Case]]:
    """Divide cases into passes of at most `rows_max` rows each, or of one case. With `whole` a case
    has all its tokens, else those from its first restored one on; in attention it has all."""
    cases_max = max(1, IN_ATTENTION * rows_max // (draws * length))
    chunks: list[list[Case]] = []
    size = 0
    for case in cases:
        rows = draws * (length if whole else length - min(case))
        if not chunks or size + rows > rows_max or len(chunks[-1]) == cases_max:
            chunks.append([])
            size = 0
        chunks[-1].append(case)
        size += rows
    return chunks
