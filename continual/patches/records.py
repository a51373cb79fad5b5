"""Records: an edit kept as a text, and its embedding.

Knows texts and vectors; how vectors are made is the encoder's, what they mean is the scope's.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Record:
    """An edit as a text: what was asked, what is to be answered, about what."""

    id: str  # the request's
    prompt: str
    target: str
    subject: str | None = None


@dataclass(frozen=True)
class Records:
    """Records and their embeddings, one each: what a memory patch holds."""

    records: tuple[Record, ...]
    embeddings: Tensor  # [r, d] float32, of unit length

    def __len__(self) -> int:
        return len(self.records)
