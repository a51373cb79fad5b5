"""The keys of text in memory, which an update leaves alone beside those of the statistics.

C₀ is of endless text that states the edited facts, too: a large weight on it holds an edit back
from its own other wordings. General text is short enough to leave out what names an edited subject.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from continual.model import EditedModel
from continual.naming import names
from continual.passes.batching import by_length
from continual.statistics.moments import read_keys

PASS_TOKENS_MAX = 2048


class GeneralKeys:
    """The base's keys of some texts at one block, read once."""

    def __init__(self, edited: EditedModel, block: int, texts: Sequence[tuple[int, ...]]) -> None:
        self._edited, self._block = edited, block
        self.texts = texts

    def naming(self, subjects: Iterable[str]) -> frozenset[int]:
        """Return the places of the texts that name one of some normalised subjects."""
        return frozenset(
            place
            for subject in subjects
            for place, words in enumerate(self._words)
            if names(words, subject)
        )

    def moment(self, left_out: frozenset[int] = frozenset()) -> Tensor | None:
        """Return the mean of k kᵀ [d_ff, d_ff] float64 over the tokens of all texts but those at
        some places; None if none is left."""
        kept_keys = [keys for place, keys in enumerate(self._keys) if place not in left_out]
        if not kept_keys:
            return None
        rows = torch.cat(kept_keys).double()
        return rows.T @ rows / len(rows)

    @cached_property
    def _words(self) -> list[str]:
        return [self._edited.decode(ids) for ids in self.texts]

    @cached_property
    def _keys(self) -> list[Tensor]:
        """The keys [T, d_ff] of each text, on the CPU."""
        parts: dict[int, Tensor] = {}
        for places in by_length([len(ids) for ids in self.texts], PASS_TOKENS_MAX):
            pieces = [self.texts[place] for place in places]
            keys = read_keys(self._edited, [self._block], pieces)[self._block].cpu()
            parts.update(zip(places, keys.split([len(piece) for piece in pieces]), strict=True))
        return [parts[place] for place in range(len(self.texts))]
