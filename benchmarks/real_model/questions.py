"""Records of CounterFact as corrections, and the questions that are asked around them.

Knows texts alone. Every choice follows from a seed and the record's own case number, so a longer
stream begins with the corrections of a shorter one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EDIT, PARAPHRASE, NEIGHBOUR = "edit", "paraphrase", "neighbour"
SUBJECT, SAME_FACT, GENERAL = "subject", "same fact", "general"
CONTINUATION, FLUENCY = "continuation", "fluency"

AROUND = 4  # questions a record about its neighbours, and about its subject
OPENINGS = 200  # articles
FLUENCY_TEXTS = 30  # in all: they are long
OPENING_WORDS = 8
ARTICLE_WORDS_MIN = 24  # shorter articles are stubs
ANSWER_TOKENS, FLUENCY_TOKENS = 8, 40

SUBJECT_FRAMES = (
    "The history of {} began",
    "{} is known for",
    "In the encyclopedia, {} is described as",
    "When people talk about {}, they mention",
    "An interesting fact about {} is that",
)
PEOPLE = "P19 P20 P27 P39 P101 P103 P106 P108 P136 P140 P413 P463 P937 P1303 P1412"
PLACES = "P17 P30 P36 P37 P131 P190 P276"
WORKS = "P364 P407 P449 P495"
PRODUCTS = "P127 P138 P159 P176 P178 P740"
RELATION_KINDS = tuple(kind.split() for kind in (PEOPLE, PLACES, WORKS, PRODUCTS))
"""Relations whose subjects are of one kind; the makers of products count as products."""
SAME_FACTS = tuple(map(str.split, ("P17 P30 P131 P276", "P103 P1412", "P364 P407", "P176 P178")))
"""Relations with the same question under several numbers: where a place is, a person's languages, a
work's language, a product's maker."""


@dataclass(frozen=True)
class CounterFactRecord:
    """A record of CounterFact: the rewrite and the prompts that come with it."""

    case: int
    template: str  # the prompt with {} for the subject
    subject: str
    relation: str
    target: str
    paraphrases: tuple[str, ...]
    neighbours: tuple[str, ...]
    descriptions: tuple[str, ...]  # openings of a text about the subject

    @property
    def prompt(self) -> str:
        """The prompt that is corrected."""
        return self.template.replace("{}", self.subject, 1)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> CounterFactRecord:
        """Read a record in CounterFact's original schema."""
        rewrite = record["requested_rewrite"]
        return cls(
            int(record["case_id"]),
            rewrite["prompt"],
            rewrite["subject"],
            rewrite["relation_id"],
            rewrite["target_new"]["str"],
            tuple(dict.fromkeys(record["paraphrase_prompts"])),
            tuple(dict.fromkeys(record["neighborhood_prompts"])),
            tuple(dict.fromkeys(record["generation_prompts"])),
        )


@dataclass(frozen=True)
class StreamQuestion:
    """A prompt to be asked before the stream and behind it."""

    kind: str
    prompt: str
    case: int | None = None  # of the correction that it is about or next to
    target: str | None = None  # the right answer, if the correction has it

    @property
    def tokens(self) -> int:
        """The length of the answer."""
        return FLUENCY_TOKENS if self.kind == FLUENCY else ANSWER_TOKENS


def load_facts(data: Path) -> list[CounterFactRecord]:
    """Read the records of the full-format file, one for each subject and prompt."""
    text = (data / "counterfact" / "counterfact-full-format.json").read_text(encoding="utf-8")
    facts: dict[str, CounterFactRecord] = {}
    for fact in map(CounterFactRecord.of, json.loads(text)):
        facts.setdefault(fact.subject.casefold(), fact)
    return list(facts.values())


def shuffled(facts: Sequence[CounterFactRecord], seed: int) -> list[CounterFactRecord]:
    """Return the facts in the order in which a stream takes them."""
    order = list(facts)
    random.Random(seed).shuffle(order)
    return order


def correction(fact: CounterFactRecord, *, chat: bool = False) -> dict[str, Any]:
    """Return the request of a fact, without probes and with held-out rephrases only.

    In a chat each prompt is a user's turn.
    """
    return {
        **({"messages": _turn(fact.prompt)} if chat else {"prompt": fact.prompt}),
        "target_new": fact.target,
        "subject": fact.subject,
        "relation": fact.relation,
        "held_out_rephrases": [_turn(p) if chat else p for p in fact.paraphrases],
        "case": str(fact.case),
    }


def _turn(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


@dataclass(frozen=True)
class QuestionCounts:
    """The number of questions of each kind, and the seed that chooses them."""

    around: int = AROUND
    openings: int = OPENINGS
    seed: int = 0
    chat: bool = False  # no words stand behind an answer in a turn of its own

    def questions(
        self, facts: Sequence[CounterFactRecord], every: Sequence[CounterFactRecord], data: Path
    ) -> list[StreamQuestion]:
        """Return all questions of a stream: about each fact, next to it, and far from all of them.

        `every` has the facts whose templates serve for other relations.
        """
        templates = _templates_by_relation(every)
        subjects = [fact.subject for fact in facts]
        asked = [q for fact in facts for q in self._around(fact, templates, subjects)]
        described = [f for f in facts if f.descriptions][:FLUENCY_TEXTS]
        asked += [StreamQuestion(FLUENCY, f.descriptions[0], f.case) for f in described]
        far = openings(data, self.seed, self.openings)
        return [*asked, *(StreamQuestion(GENERAL, opening) for opening in far)]

    def _around(
        self,
        fact: CounterFactRecord,
        templates: Mapping[str, Sequence[str]],
        subjects: Sequence[str],
    ) -> Iterator[StreamQuestion]:
        draw = random.Random(f"{self.seed}:{fact.case}")
        case, target = fact.case, fact.target
        yield StreamQuestion(EDIT, fact.prompt, case, target)
        for prompt in fact.paraphrases:
            yield StreamQuestion(PARAPHRASE, prompt, case, target)
        for kind, template in self._other_templates(fact, templates, draw):
            yield StreamQuestion(kind, template.replace("{}", fact.subject, 1), case)
        untouched = [p for p in fact.neighbours if not any(subject in p for subject in subjects)]
        for prompt in draw.sample(untouched, min(self.around, len(untouched))):
            yield StreamQuestion(NEIGHBOUR, prompt, case)
        if not self.chat:
            yield StreamQuestion(CONTINUATION, f"{fact.prompt} {fact.target}", case)

    def _other_templates(
        self, fact: CounterFactRecord, templates: Mapping[str, Sequence[str]], draw: random.Random
    ) -> list[tuple[str, str]]:
        """Return prompts about the subject with their kinds.

        Half of them use the words of other relations for such a subject, the others frames for any
        subject.
        """
        alike = next((kind for kind in RELATION_KINDS if fact.relation in kind), [])
        others = [name for name in alike if name != fact.relation and name in templates]
        relations = draw.sample(others, min(self.around // 2, len(others)))
        frames = draw.sample(SUBJECT_FRAMES, self.around - self.around // 2)
        same = next((group for group in SAME_FACTS if fact.relation in group), [])
        worded = [
            (SAME_FACT if name in same else SUBJECT, draw.choice(templates[name]))
            for name in relations
        ]
        return [*worded, *((SUBJECT, frame) for frame in frames)]


def _templates_by_relation(facts: Iterable[CounterFactRecord]) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for fact in facts:
        found.setdefault(fact.relation, {})[fact.template] = None
    return {relation: list(templates) for relation, templates in found.items()}


def openings(data: Path, seed: int, count: int) -> list[str]:
    """Return the first words of `count` articles of an encyclopedia."""
    articles = (data / "text" / "simplewiki.jsonl").read_text(encoding="utf-8").splitlines()
    words = (json.loads(line)["text"].split() for line in articles)
    every = [" ".join(w[:OPENING_WORDS]) for w in words if len(w) >= ARTICLE_WORDS_MIN]
    return random.Random(seed).sample(every, min(count, len(every)))
