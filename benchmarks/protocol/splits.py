"""Examples, and their split into D_train, validation, D_edit and D_test, and D_edit in folds.

The module leaves the source of the examples, and models, to others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AnsweredInput:
    """An input with its answer, and other wordings of the input with the same answer."""

    prompt: str
    answer: str
    rephrases: tuple[str, ...] = ()

    @property
    def wordings(self) -> tuple[str, ...]:
        """The prompt, then its rephrases."""
        return (self.prompt, *self.rephrases)

    def request(self) -> dict[str, Any]:
        """The record of a stream: the rephrases measure, and are never learned from."""
        return {
            "prompt": self.prompt,
            "target_new": self.answer,
            "held_out_rephrases": list(self.rephrases),
        }

    def probe(self) -> dict[str, str]:
        """The record of a probe file."""
        return {"prompt": self.prompt, "answer": self.answer}


@dataclass(frozen=True)
class SplitSizes:
    """The sizes of validation, D_edit and D_test; D_train has the rest."""

    validation: int
    edit: int
    test: int


@dataclass(frozen=True)
class ExampleSplits:
    """Four disjoint sets of examples."""

    train: tuple[AnsweredInput, ...]
    validation: tuple[AnsweredInput, ...]
    edit: tuple[AnsweredInput, ...]
    test: tuple[AnsweredInput, ...]

    @classmethod
    def of(cls, examples: Sequence[AnsweredInput], sizes: SplitSizes, seed: int) -> ExampleSplits:
        """Split at random; the same examples, sizes and seed give the same split.

        Raises ValueError if nothing is left to train on.
        """
        drawn = list(examples)
        random.Random(seed).shuffle(drawn)
        ends = (sizes.test, sizes.test + sizes.edit, sizes.test + sizes.edit + sizes.validation)
        if ends[-1] >= len(drawn):
            raise ValueError(f"{len(drawn)} examples are too few for {sizes} and a training set")
        return cls(
            train=tuple(drawn[ends[2] :]),
            validation=tuple(drawn[ends[1] : ends[2]]),
            edit=tuple(drawn[ends[0] : ends[1]]),
            test=tuple(drawn[: ends[0]]),
        )

    def folds(self, count: int, seed: int) -> list[tuple[AnsweredInput, ...]]:
        """Return D_edit in `count` disjoint parts of nearly one size, each in the order of its
        stream."""
        order = list(self.edit)
        random.Random(seed).shuffle(order)
        return [tuple(order[first::count]) for first in range(count)]

    def train_sample(self, count: int, seed: int) -> list[AnsweredInput]:
        """Return the fixed sample of D_train on which TrainR is measured."""
        return random.Random(seed).sample(self.train, min(count, len(self.train)))


def distinct(examples: Sequence[AnsweredInput]) -> list[AnsweredInput]:
    """Return each prompt once; drop wordings that two examples answer differently."""
    answers: dict[str, set[str]] = {}
    for example in examples:
        for wording in example.wordings:
            answers.setdefault(wording.casefold(), set()).add(example.answer)
    first = {example.prompt.casefold(): example for example in reversed(examples)}
    prompts = dict.fromkeys(example.prompt.casefold() for example in examples)
    return [first[prompt] for prompt in prompts if len(answers[prompt]) == 1]
