"""The scope: decides which of the edits in memory, if any, an input is about.

An input's candidates are the records nearest to it by cosine. A scope gives each pair a score in
[0, 1]; the best candidate wins the input if its score reaches the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from continual.effects.records import EmbeddedRecords, Record
from continual.errors import ScopeError
from continual.memory.encoder import SentenceEncoder
from continual.memory.features import part_cosines
from continual.memory.inputs import Queries

CANDIDATES = 8
THRESHOLD = 0.75  # a cosine of MiniLM


class Scope(Protocol):
    """A way to decide whether an input is about a record."""

    candidates: int  # number of nearest records that get a second look
    threshold: float

    @property
    def encoder(self) -> SentenceEncoder | None:
        """The encoder that turns texts into vectors; None for a scope that needs none."""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the encoder and of all weights trained on top of it."""

    def queries(self, texts: Sequence[str]) -> Queries:
        """Return inputs as the scope sees them. Each text is embedded once in its life."""

    def records(self, records: Sequence[Record]) -> EmbeddedRecords:
        """Return records with the embeddings under which they are kept."""

    def scores(
        self, queries: Queries, records: EmbeddedRecords, pairs: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Return [p] the score of each (query, record) pair. It depends on nothing but the two."""


class ThresholdScope:
    """The untrained scope: a record wins an input whose cosine with it reaches one threshold.

    Negative cosines score 0. The threshold is a cosine.
    """

    def __init__(
        self, encoder: SentenceEncoder, threshold: float = THRESHOLD, candidates: int = CANDIDATES
    ) -> None:
        self.encoder = encoder
        self.threshold = require_threshold(threshold)
        self.candidates = candidates

    @property
    def fingerprint(self) -> str:
        """The encoder's fingerprint alone: nothing is trained."""
        return self.encoder.fingerprint

    def queries(self, texts: Sequence[str]) -> Queries:
        """Return inputs seen as a whole only."""
        return Queries(tuple(texts), self.encoder.embed(texts).unsqueeze(1))

    def records(self, records: Sequence[Record]) -> EmbeddedRecords:
        """Return records by their prompts."""
        prompts = [record.prompt for record in records]
        return EmbeddedRecords(tuple(records), self.encoder.embed(prompts))

    def scores(
        self, queries: Queries, records: EmbeddedRecords, pairs: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Return [p] the cosines, in [0, 1]."""
        return part_cosines(queries, records, pairs).amax(1).clamp(0, 1).float()


def require_threshold(threshold: float) -> float:
    """Return the threshold if it lies in (0, 1]. Raises ``ScopeError``."""
    if not 0 < threshold <= 1:
        raise ScopeError(f"a scope's threshold is a number in (0, 1]; it was given {threshold!r}")
    return threshold
