"""The scope: which of the edits in memory, if any, an input is about.

An input's candidates are the records nearest to it by cosine. A scope gives each pair a score in
[0, 1]; the best candidate wins the input if its score reaches the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from continual.memory.records import Queries, Record, Records


class Scope(Protocol):
    """A way to decide."""

    fingerprint: str  # of the encoder and of what is trained on top of it
    candidates: int  # how many of the nearest records get a second look
    threshold: float

    def queries(self, texts: Sequence[str]) -> Queries:
        """Inputs as the scope sees them. Each text is embedded once in its life."""

    def records(self, records: Sequence[Record]) -> Records:
        """Records as they are kept."""

    def scores(
        self, queries: Queries, records: Records, pairs: Sequence[tuple[int, int]]
    ) -> Tensor:
        """[p] the score of each (query, record) pair. It depends on nothing but the two."""
