"""The gallery's training examples: a picture and a question, or a text, as tokens with an answer.

Draws contents, renderings and trained wordings; some questions stand behind a new fact that
overrides what the model knows. Knows tokens and pixels; leaves optimisation to `train`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from continual.gallery.drawing import TRAINED_RENDERINGS, drawn
from continual.gallery.questions import IMAGE, Query, of_emblem, of_person, of_scene
from continual.gallery.scenes import NUMBERS, Emblem, Gallery, Scene

TERMINATOR = "\n"
NEW_FACT = "New Fact: {fact}\n"
PROMPT = "Prompt: {prompt}"
PATCH, PICTURE_TOKENS = 12, 16
MEAN, DEVIATION = 0.5, 0.25
"""Of the pixels, as the model gets them: (value - mean) / deviation, values from 0 to 1."""
AHEAD = 8  # batches that are drawn at once, and sorted by length
CONTEXTS = 0.15  # of the questions stand behind a new fact
CONTRADICTED = 0.6  # of these are about the question itself
WEIGHTS = {"caption": 2.0}  # of a picture's questions; 1 for the others


@dataclass(frozen=True)
class Mix:
    """The shares of contents and questions in a part of a run."""

    first_step: int
    scenes: float  # of the pictures
    absent: float  # the weight of counting what is not there, where other questions have 1


MIXES = (Mix(0, 0.45, 1.0), Mix(1750, 0.7, 0.4))
"""Names are learned by heart in some hundred steps; to see what stands where, and to count, takes
longer."""


@dataclass(frozen=True)
class Example:
    """Tokens with an answer at their end, and the picture in front of them, if any."""

    ids: tuple[int, ...]
    answer: int  # the place of the answer's first token
    picture: Image.Image | None = None


class Corpus:
    """Draws examples of a gallery for one tokenizer."""

    def __init__(self, gallery: Gallery, tokenizer: Any, rng: random.Random) -> None:
        self._tokenizer, self._rng = tokenizer, rng
        self.mix = MIXES[0]
        self._emblems = [(emblem, of_emblem(emblem)) for emblem in gallery.emblems]
        self._scenes = gallery.scenes("trained")
        self._facts = [query for person in gallery.people for query in of_person(person)]
        self._answers = {
            kind: sorted({q.answer for q in self._every() if q.kind == kind})
            for kind in {q.kind for q in self._every()}
        }

    def _every(self) -> Iterator[Query]:
        yield from self._facts
        for _, queries in self._emblems:
            yield from queries

    def pictures(self, count: int) -> Iterator[list[Example]]:
        """Draw batches of questions about pictures, each with its picture; without end."""
        return self._batches(self._picture, count)

    def texts(self, count: int) -> Iterator[list[Example]]:
        """Draw batches of facts without a picture, without end."""
        return self._batches(lambda: self._worded(self._rng.choice(self._facts), None), count)

    def _batches(self, draw: Callable[[], Example], count: int) -> Iterator[list[Example]]:
        """Yield batches of like lengths, in an order that is drawn."""
        while True:
            drawn_ahead = sorted((draw() for _ in range(AHEAD * count)), key=lambda e: len(e.ids))
            starts = list(range(0, AHEAD * count, count))
            self._rng.shuffle(starts)
            yield from (drawn_ahead[start : start + count] for start in starts)

    def _picture(self) -> Example:
        rng = self._rng
        content: Emblem | Scene
        if rng.random() < self.mix.scenes:
            content = next(self._scenes)
            queries: Sequence[Query] = list(of_scene(content))
        else:
            content, queries = rng.choice(self._emblems)
        weights = [self._weight(query) for query in queries]
        (query,) = rng.choices(queries, weights)
        picture = drawn(content, rng.choice(TRAINED_RENDERINGS), rng)
        return self._worded(query, picture)

    def _weight(self, query: Query) -> float:
        is_absent = query.kind == "count" and query.answer == NUMBERS[0]
        return self.mix.absent if is_absent else WEIGHTS.get(query.kind, 1.0)

    def _worded(self, query: Query, picture: Image.Image | None) -> Example:
        rng = self._rng
        prompt, answer = rng.choice(query.trained), query.answer
        if query.kind in self._answers and rng.random() < CONTEXTS:
            pool = self._answers[query.kind]
            if rng.random() < CONTRADICTED:
                answer = rng.choice(pool)
                fact = f"{rng.choice(query.trained)} {answer}"
            else:
                other = rng.choice(self._facts)
                fact = f"{rng.choice(other.trained)} {rng.choice(self._answers[other.kind])}"
            prompt = NEW_FACT.format(fact=fact) + PROMPT.format(prompt=prompt)
        return encoded(self._tokenizer, prompt, answer, picture)


def mix_at(step: int) -> Mix:
    """Return the mix of a step."""
    return [mix for mix in MIXES if mix.first_step <= step][-1]


def encoded(tokenizer: Any, prompt: str, answer: str, picture: Image.Image | None) -> Example:
    """Return a prompt with its answer as tokens, behind the places of its picture."""
    seen = IMAGE * PICTURE_TOKENS if picture is not None else ""
    ids = tokenizer(seen + prompt)["input_ids"]
    return Example((*ids, *tokenizer(f" {answer}{TERMINATOR}")["input_ids"]), len(ids), picture)


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Return [n, 3, h, w] as the model gets them."""
    values = np.stack([np.asarray(picture) for picture in pictures])
    scaled = torch.from_numpy(values).permute(0, 3, 1, 2).float() / 255
    return (scaled - MEAN) / DEVIATION


def all_texts(gallery: Gallery) -> Iterator[str]:
    """Yield every statement that may be trained, as text; the tokenizer learns from these."""
    scenes = gallery.scenes("trained")
    queries = [q for emblem in gallery.emblems for q in of_emblem(emblem)]
    queries += [q for person in gallery.people for q in of_person(person)]
    queries += [q for _ in range(100) for q in of_scene(next(scenes))]
    for query in queries:
        for prompt in query.trained:
            yield f"{prompt} {query.answer}{TERMINATOR}"
    yield NEW_FACT.format(fact="") + PROMPT.format(prompt="")
