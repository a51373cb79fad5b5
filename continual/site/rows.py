"""Rows: query, residual sum and target of probes' answer positions at the last FFN.

Knows tensors and the texts before them; leaves reading and judging rows to `Site`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Self

import torch
from torch import Tensor

from continual.reading import RowTexts
from continual.tasks import Encoding, answer_places


@dataclass(frozen=True)
class Rows:
    """The answer positions of some probes, one after another, at the last FFN without neurons."""

    query: Tensor  # [n, d] float32
    hidden: Tensor  # [n, d] float32: residual + FFN output
    targets: Tensor  # [n] the expected token
    texts: RowTexts | None = None  # [n] the words read up to each row, if known

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Tensor | slice) -> Rows:
        texts = None if self.texts is None else self.texts.take(index)
        return Rows(self.query[index], self.hidden[index], self.targets[index], texts)

    def split(self, sizes: Sequence[int]) -> tuple[Rows, ...]:
        """Split the rows into consecutive parts of these sizes."""
        if list(sizes) == [len(self)]:
            return (self,)
        ends = list(accumulate(sizes, initial=0))
        return tuple(self[slice(a, b)] for a, b in pairwise(ends))

    def begin_with(self, rows: Rows) -> bool:
        """Tell whether `rows` are the first of these, or all: same bits, behind the same words."""
        count = len(rows)
        if self.texts is not None and rows.texts is not None:
            same_texts = list(rows.texts.prefixes) == list(self.texts.prefixes[:count])
        else:
            same_texts = self.texts is rows.texts
        is_query = torch.equal(rows.query, self.query[:count])
        return same_texts and is_query and torch.equal(rows.hidden, self.hidden[:count])

    @classmethod
    def join(cls, rows: Iterable[Rows]) -> Self:
        """Join all rows, one after another."""
        parts = list(rows)
        if len(parts) == 1:
            return cls(parts[0].query, parts[0].hidden, parts[0].targets, parts[0].texts)
        return cls(
            torch.cat([r.query for r in parts]),
            torch.cat([r.hidden for r in parts]),
            torch.cat([r.targets for r in parts]),
            RowTexts.join([r.texts for r in parts]),
        )


def answer_rows(encodings: Sequence[Encoding], query: Tensor, hidden: Tensor) -> Rows:
    """Pick the answer positions out of a pass's query and residual sum [B, T, d]."""
    sequence, position = answer_places(encodings, hidden.device)
    targets = [target for encoding in encodings for target in encoding.targets]
    return Rows(
        query[sequence, position].float(),
        hidden[sequence, position].float(),
        torch.tensor(targets, device=hidden.device),
    )
