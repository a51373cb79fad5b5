"""A scope that needs no encoder, and corrections of the tiny language with probes around them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from continual.effects.records import EmbeddedRecords, Record
from continual.memory.inputs import Queries
from tests.tiny_language import CAPITALS, COUNTRIES, ask, capital, correction

WIDTH = 128


class WordScope:
    """Bags of words, each a vector of its own; the names of countries weigh most."""

    encoder = None
    candidates = 3

    def __init__(self, threshold: float = 0.85, fingerprint: str = "words") -> None:
        self.threshold = threshold
        self.fingerprint = fingerprint
        self.embedded: list[str] = []  # all texts, in order

    def queries(self, texts: Sequence[str]) -> Queries:
        return Queries(tuple(texts), self._embed(texts).unsqueeze(1))

    def records(self, records: Sequence[Record]) -> EmbeddedRecords:
        return EmbeddedRecords(tuple(records), self._embed([record.prompt for record in records]))

    def scores(
        self, queries: Queries, records: EmbeddedRecords, pairs: Sequence[tuple[int, int]]
    ) -> Tensor:
        found = [
            queries.embeddings[i, 0].double() @ records.embeddings[j].double() for i, j in pairs
        ]
        return torch.stack(found).clamp(0, 1).float() if found else torch.empty(0)

    def _embed(self, texts: Sequence[str]) -> Tensor:
        self.embedded += texts
        return torch.stack([_bag(text) for text in texts]) if texts else torch.empty(0, WIDTH)


def _bag(text: str) -> Tensor:
    total = torch.zeros(WIDTH)
    for word in text.split():
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
        vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
        total += vector * (3.0 if word in COUNTRIES else 0.7)
    return torch.nn.functional.normalize(total, dim=0)


def about(country: int, target: str | None = None, **more: Any) -> dict[str, Any]:
    """A correction with every kind of probe around it."""
    near = (country + 1) % 40
    return correction(
        country,
        target or CAPITALS[(7 * country + 4) % len(CAPITALS)],
        **{
            "rephrases": [ask(country, 1)],
            "held_out_rephrases": [ask(country, 2)],
            "locality": [
                {"prompt": ask(near), "answer": capital(near)},
                {"prompt": ask(near, 3), "answer": capital(near)},
            ],
            **more,
        },
    )
