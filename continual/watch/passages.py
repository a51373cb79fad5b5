"""Passages: texts with the token that the model says behind each position, from one position on.

Two kinds look alike here: a question with the answer that the model gives it, and a text that the
model wrote by sampling. Knows tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from continual.tasks import Encoding, Question

UNSAID = -1
"""In the place of an expected token: two tokens are too close there to expect either."""


@dataclass(frozen=True)
class Passage:
    """A text, and the tokens expected behind its positions from `first` on."""

    ids: tuple[int, ...]
    first: int
    said: tuple[int, ...]  # one for each position; UNSAID where none is expected

    @property
    def rows(self) -> int:
        """Count its positions."""
        return len(self.said)

    def encoding(self) -> Encoding:
        """All positions as one probe, which is right where each of them is."""
        positions = tuple(range(self.first, self.first + len(self.said)))
        return Encoding(Question(self.ids[: self.first + 1]), positions, self.said, self.ids)

    def positions(self) -> list[Encoding]:
        """Each position with an expected token as a probe of its own, all read in one pass."""
        return [
            Encoding(Question(self.ids[: place + 1]), (place,), (token,), self.ids)
            for place, token in enumerate(self.said, start=self.first)
            if token != UNSAID
        ]

    def cut(self, count: int) -> Passage:
        """Keep the first `count` positions."""
        return Passage(self.ids[: self.first + count], self.first, self.said[:count])

    def to_json(self) -> list[Any]:
        """[ids, first, said]"""
        return [list(self.ids), self.first, list(self.said)]

    @classmethod
    def from_json(cls, record: Sequence[Any]) -> Self:
        """Read a passage back."""
        ids, first, said = record
        return cls(tuple(ids), int(first), tuple(said))
