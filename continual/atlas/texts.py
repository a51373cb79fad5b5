"""The texts that the atlas was trained on, one by one, for its key statistics."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from continual.atlas.corpus import TERMINATOR
from continual.atlas.facts import load_facts


@dataclass(frozen=True)
class AtlasTexts:
    """The atlas's facts in their trained phrasings, each with its end.

    All facts come once, in an order drawn by the seed, before any comes in another phrasing.
    """

    seed: int = 0

    def __iter__(self) -> Iterator[str]:
        rng = random.Random(self.seed)
        facts = load_facts()
        statements = [
            [f"{prompt} {fact.object}{TERMINATOR}" for prompt in fact.trained_prompts]
            for fact in facts
        ]
        for phrasings in statements:
            rng.shuffle(phrasings)
        while statements:
            rng.shuffle(statements)
            for phrasings in statements:
                yield phrasings.pop()
            statements = [phrasings for phrasings in statements if phrasings]
