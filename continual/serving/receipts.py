"""The latest answers by their receipts, so that feedback needs to name no more than a receipt.

They are kept in memory alone: feedback that names an older one has to bring its prompt.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from continual.prompts import Prompt

RECEIPTS_MAX = 10_000
CHARACTERS_MAX = 64 << 20  # of all prompts and answers


@dataclass(frozen=True)
class Receipt:
    """An answer that was given."""

    id: str
    prompt: Prompt
    answer: str
    revision: str
    fingerprint: str

    @property
    def characters(self) -> int:
        """The length of its texts."""
        return len(str(self.prompt)) + len(self.answer)


class Receipts:
    """The latest receipts; any thread may use them."""

    def __init__(self, most: int = RECEIPTS_MAX, characters_max: int = CHARACTERS_MAX) -> None:
        self._most, self._characters_max = most, characters_max
        self._kept: OrderedDict[str, Receipt] = OrderedDict()
        self._characters = 0
        self._turn = threading.Lock()

    def keep(self, receipt: Receipt) -> None:
        """Keep a receipt; the oldest go where there are too many."""
        with self._turn:
            self._kept[receipt.id] = receipt
            self._characters += receipt.characters
            while len(self._kept) > self._most or self._characters > self._characters_max:
                _, oldest = self._kept.popitem(last=False)
                self._characters -= oldest.characters

    def find(self, identity: str) -> Receipt | None:
        """Return the receipt of an answer, with or without the prefix of its kind; None for an
        unknown one, and for one that is no longer kept."""
        with self._turn:
            return self._kept.get(identity.rpartition("-")[2])
