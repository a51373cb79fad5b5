"""Inputs as the memory sees them: texts that may be about an edit, and their embeddings.

Knows texts and vectors; leaves making the vectors to the encoder, their meaning to the scope.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

GRID = 2.0**20


@dataclass(frozen=True)
class Queries:
    """Inputs that may be about an edit. Each is seen as a whole, and perhaps in parts."""

    texts: tuple[str, ...]
    embeddings: Tensor  # [q, s, d] float32, of unit length; missing parts repeat the whole

    def __len__(self) -> int:
        return len(self.texts)

    def similarity(self, records: Tensor) -> Tensor:
        """Return [q, r] float64: the highest cosine of an input, or a part of it, with each record
        [r, d].

        The same to the bit whatever is computed together: on a grid of 2⁻²⁰ every sum is exact.
        """
        return (_on_grid(self.embeddings) @ _on_grid(records).T).amax(1)

    def similarity_of(self, records: Tensor) -> Tensor:
        """Return [q, c] float64: the same, for each input's own records [q, c, d]."""
        rows = _on_grid(records).transpose(1, 2)  # [q, d, c]
        return (_on_grid(self.embeddings) @ rows).amax(1)

    def chosen(self, index: Sequence[int]) -> Queries:
        """Return the inputs at these places, in this order."""
        return Queries(tuple(self.texts[i] for i in index), self.embeddings[list(index)])


def _on_grid(vectors: Tensor) -> Tensor:
    """Round vectors of unit length so that their products add up without rounding in float64."""
    return (vectors.double() * GRID).round() / GRID
