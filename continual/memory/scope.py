"""The scope: which of the edits in memory, if any, an input is about.

An input's candidates are the records nearest to it by cosine. A scope gives each pair a score in
[0, 1]; the best candidate wins the input if its score reaches the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from continual.errors import ScopeError
from continual.memory.encoder import SentenceEncoder
from continual.memory.records import Queries, Record, Records

CANDIDATES = 8
THRESHOLD = 0.75  # a cosine of MiniLM


class Scope(Protocol):
    """A way to decide."""

    candidates: int  # how many of the nearest records get a second look
    threshold: float

    @property
    def fingerprint(self) -> str:
        """Of the encoder and of what is trained on top of it."""

    def queries(self, texts: Sequence[str]) -> Queries:
        """Inputs as the scope sees them. Each text is embedded once in its life."""

    def records(self, records: Sequence[Record]) -> Records:
        """Records as they are kept."""

    def scores(
        self, queries: Queries, records: Records, pairs: Sequence[tuple[int, int]]
    ) -> Tensor:
        """[p] the score of each (query, record) pair. It depends on nothing but the two."""


class ThresholdScope:
    """The untrained scope: a record wins an input whose cosine with it reaches one threshold.

    Negative cosines score 0. The threshold is a cosine.
    """

    def __init__(
        self, encoder: SentenceEncoder, threshold: float = THRESHOLD, candidates: int = CANDIDATES
    ) -> None:
        self.encoder = encoder
        self.threshold = _require_threshold(threshold)
        self.candidates = candidates

    @property
    def fingerprint(self) -> str:
        """The encoder's alone: nothing is trained."""
        return self.encoder.fingerprint

    def queries(self, texts: Sequence[str]) -> Queries:
        """Inputs seen as a whole only."""
        return Queries(tuple(texts), self.encoder.embed(texts).unsqueeze(1))

    def records(self, records: Sequence[Record]) -> Records:
        """Records by their prompts."""
        prompts = [record.prompt for record in records]
        return Records(tuple(records), self.encoder.embed(prompts))

    def scores(
        self, queries: Queries, records: Records, pairs: Sequence[tuple[int, int]]
    ) -> Tensor:
        """[p] the cosines, in [0, 1]."""
        return best_cosines(queries, records, pairs).clamp(0, 1).float()


def best_cosines(queries: Queries, records: Records, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """[p] float64: the highest cosine of each pair's input, or a part of it, with its record.

    Summed row by row, as a matrix product may round a pair by what it is multiplied with.
    """
    inputs = queries.embeddings[[pair[0] for pair in pairs]].double()  # [p, s, d]
    kept = records.embeddings[[pair[1] for pair in pairs]].double()
    return (inputs * kept.unsqueeze(1)).sum(-1).amax(1)


def _require_threshold(threshold: float) -> float:
    if not 0 < threshold <= 1:
        raise ScopeError(f"a scope's threshold is a number in (0, 1]; it was given {threshold!r}")
    return threshold
