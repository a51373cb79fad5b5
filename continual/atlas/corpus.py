"""The atlas's training texts: statements of its facts, and new facts given in context.

Knows how a fact becomes token ids with its subject and answer located, and how examples are drawn
and batched by length. Knows nothing of the model or of optimisation.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from continual.atlas.facts import Fact, by_relation, by_subject, objects_of

TERMINATOR = "\n"
NEW_FACT = "New Fact: {fact}\n"
PROMPT = "Prompt: {prompt}"


@dataclass(frozen=True)
class TrainingSequence:
    """One training sequence. The loss counts from `answer` on; `subject` is a span of tokens."""

    ids: tuple[int, ...]
    answer: int  # index of the answer's first token
    subject: tuple[int, int] | None = None  # [first, last] token of the subject, if known


def in_context(new_facts: Iterable[str], prompt: str) -> str:
    """Return a prompt behind new facts, in IKE's form (Zheng et al. 2023, section 3)."""
    statements = "".join(NEW_FACT.format(fact=fact) for fact in new_facts)
    return statements + PROMPT.format(prompt=prompt)


def all_texts(facts: Sequence[Fact]) -> Iterator[str]:
    """Yield every statement that may be trained, as text; the tokenizer learns from these."""
    for fact in facts:
        for prompt in fact.trained_prompts:
            yield f"{prompt} {fact.object}{TERMINATOR}"
            yield in_context([f"{prompt} {fact.object}"], prompt)


def subject_span(tokenizer: Any, prompt: str, subject: str) -> tuple[int, int]:
    """Return the [first, last] token of the subject in a prompt."""
    start = prompt.index(subject)
    end = start + len(subject)
    offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    places = [i for i, (a, b) in enumerate(offsets) if b > start and a < end]
    return places[0], places[-1]


class Corpus:
    """Draws training examples from facts, for one tokenizer."""

    def __init__(self, facts: Sequence[Fact], tokenizer: Any, rng: random.Random) -> None:
        self._facts = list(facts)
        self._tokenizer = tokenizer
        self._rng = rng
        self._objects = objects_of(facts)
        self._by_relation, self._by_subject = by_relation(facts), by_subject(facts)

    def statements(self) -> list[TrainingSequence]:
        """Return every fact in every trained phrasing."""
        return [
            self._statement(fact, prompt) for fact in self._facts for prompt in fact.trained_prompts
        ]

    def contexts(self, count: int) -> list[TrainingSequence]:
        """Draw `count` prompts behind one to four new facts; about half of them are overridden."""
        return [self._context() for _ in range(count)]

    def passages(self, count: int) -> list[TrainingSequence]:
        """Draw `count` statements that follow one or two others, as in running text."""
        return [self._passage() for _ in range(count)]

    def _statement(self, fact: Fact, prompt: str) -> TrainingSequence:
        encoding = self._tokenizer(prompt, return_offsets_mapping=True)
        start = prompt.index(fact.subject)
        end = start + len(fact.subject)
        places = [i for i, (a, b) in enumerate(encoding["offset_mapping"]) if b > start and a < end]
        answer = self._answer_ids(fact.object)
        ids = tuple(encoding["input_ids"]) + answer
        return TrainingSequence(ids, len(encoding["input_ids"]), (places[0], places[-1]))

    def _context(self) -> TrainingSequence:
        fact = self._rng.choice(self._facts)
        is_overridden = self._rng.random() < 0.45
        count = 1 if self._rng.random() < 0.88 else self._rng.randint(2, 4)
        statements = [self._told(self._distractor(fact)) for _ in range(count - is_overridden)]
        answer = fact.object
        if is_overridden:
            answer = self._other_object(fact)
            statements.append(f"{self._rng.choice(fact.trained_prompts)} {answer}")
            self._rng.shuffle(statements)
        text = in_context(statements, self._rng.choice(fact.trained_prompts))
        return self._continued(text, answer)

    def _passage(self) -> TrainingSequence:
        fact = self._rng.choice(self._facts)
        context_facts = [self._rng.choice(self._facts) for _ in range(self._rng.randint(1, 2))]
        lines = [
            f"{self._rng.choice(f.trained_prompts)} {f.object}{TERMINATOR}" for f in context_facts
        ]
        text = " ".join([*lines, self._rng.choice(fact.trained_prompts)])
        return self._continued(text, fact.object)

    def _continued(self, text: str, answer: str) -> TrainingSequence:
        ids = tuple(self._tokenizer(text)["input_ids"])
        return TrainingSequence(ids + self._answer_ids(answer), len(ids))

    def _answer_ids(self, answer: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(f" {answer}{TERMINATOR}")["input_ids"])

    def _told(self, fact: Fact) -> str:
        return f"{self._rng.choice(fact.trained_prompts)} {self._other_object(fact)}"

    def _other_object(self, fact: Fact) -> str:
        while (candidate := self._rng.choice(self._objects[fact.relation.name])) == fact.object:
            pass
        return candidate

    def _distractor(self, fact: Fact) -> Fact:
        """Draw another fact: of the same relation, of the same subject, or any."""
        draw = self._rng.random()
        pool = (
            self._by_relation[fact.relation.name]
            if draw < 0.45
            else self._by_subject[fact.subject]
            if draw < 0.75 and len(self._by_subject[fact.subject]) > 1
            else self._facts
        )
        while (candidate := self._rng.choice(pool)) == fact:
            pass
        return candidate


def batches(
    examples: Sequence[TrainingSequence], tokens_max: int, rng: random.Random
) -> Iterator[list[TrainingSequence]]:
    """Yield batches of examples of nearly one length, at most `tokens_max` padded tokens each."""
    order = sorted(examples, key=lambda example: (len(example.ids), rng.random()))
    groups: list[list[TrainingSequence]] = []
    batch: list[TrainingSequence] = []
    for example in order:
        if batch and len(example.ids) * (len(batch) + 1) > tokens_max:
            groups.append(batch)
            batch = []
        batch.append(example)
    groups.append(batch)
    rng.shuffle(groups)
    yield from groups
