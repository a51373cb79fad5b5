"""Passages: texts with the token that the model says behind each position, from one position on.

Two kinds of text have this form: a question with the model's answer, and a text that the model
wrote by sampling. Knows tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from continual.picture_marks import packed, unpacked
from continual.tasks import Encoding, Question

UNSAID = -1
"""Stands for an expected token where two tokens are too close to expect either."""


@dataclass(frozen=True)
class Passage:
    """A text, and the tokens expected behind its positions from `first` on."""

    ids: tuple[int, ...]
    first: int
    said: tuple[int, ...]  # one for each position; UNSAID where none is expected

    @property
    def rows(self) -> int:
        """The number of its positions."""
        return len(self.said)

    def encoding(self) -> Encoding:
        """Return all positions as one probe, which is right if each of them is."""
        positions = tuple(range(self.first, self.first + len(self.said)))
        return Encoding(Question(self.ids[: self.first + 1]), positions, self.said, self.ids)

    def positions(self) -> list[Encoding]:
        """Return each position with an expected token as a probe of its own; one pass reads all."""
        return [
            Encoding(Question(self.ids[: place + 1]), (place,), (token,), self.ids)
            for place, token in enumerate(self.said, start=self.first)
            if token != UNSAID
        ]

    def cut(self, count: int) -> Passage:
        """Keep the first `count` positions."""
        return Passage(self.ids[: self.first + count], self.first, self.said[:count])

    def to_json(self) -> list[Any]:
        """Return the passage as [ids, first, said]."""
        return [packed(self.ids), self.first, list(self.said)]

    @classmethod
    def from_json(cls, record: Sequence[Any]) -> Self:
        """Read a passage from its JSON form."""
        ids, place, tokens = record
        return cls(unpacked(ids), int(place), tuple(tokens))
