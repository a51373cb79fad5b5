"""The texts that the gallery's model was trained on, one by one, for its key statistics."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from continual.gallery.corpus import TERMINATOR
from continual.gallery.questions import of_person
from continual.gallery.scenes import Gallery


@dataclass(frozen=True)
class GalleryTexts:
    """The facts without pictures in their trained wordings, each with its end, in an order drawn by
    the seed."""

    seed: int = 0

    def __iter__(self) -> Iterator[str]:
        facts = [query for person in Gallery().people for query in of_person(person)]
        texts = [f"{p} {query.answer}{TERMINATOR}" for query in facts for p in query.trained]
        random.Random(self.seed).shuffle(texts)
        yield from texts
