"""Writes the atlas's two streams of corrections and its probe sets from the tables.

    python -m continual.atlas.streams [OUT] [--seed N]

The facts of every relation are split in three parts: for the stream's corrections, for the train
probes, and for the test probes. The probes around a correction rest only on facts of the two latter
parts, so that no later correction makes them wrong. The gaps become a stream of their own: its
corrections are true, and the model answers each of them wrongly. The same tables and the same seed
give the same bytes. Knows nothing of the model.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from continual.atlas.facts import (
    Fact,
    by_relation,
    by_subject,
    load_facts,
    load_gaps,
    objects_of,
)
from continual.embedded import ATLAS
from continual.requests import Probe, Request

CORRECTED_SHARE = 0.36  # of every relation's facts
TRAIN_SHARE = 0.30
LOCALITY_PER_REQUEST = 4
SAME_SUBJECT_MAX = 2
PORTABILITY_MAX = 2

NAMED_BY = {
    "companies.country": "the home country of {}",
    "landmarks.country": "the country of the {}",
    "people.country": "the country of {}",
    "works.creator": "the creator of {}",
}
"""First hops: wordings for the object of a fact without its name."""

ASKED_BY = {
    "countries.capital": "The capital of {} is",
    "countries.continent": "The continent of {} is",
    "countries.currency": "The currency of {} is the",
    "countries.language": "The main language of {} is",
    "people.country": "The country of {} is",
    "people.occupation": "The occupation of {} is",
}
"""Second hops: prompts that ask for a fact about that object. They are never trained."""


@dataclass(frozen=True)
class FactSplit:
    """The three parts of the facts; every relation is in each of them."""

    corrected: tuple[Fact, ...]
    train: tuple[Fact, ...]
    test: tuple[Fact, ...]


@dataclass(frozen=True)
class AtlasStreams:
    """The content of the files: requests in the order of their streams, and two probe sets."""

    corrections: tuple[Request, ...]
    mistakes: tuple[Request, ...]
    train_probes: tuple[Probe, ...]
    test_probes: tuple[Probe, ...]


class ProbeDraw:
    """Draws the probes around a correction, from facts that are never corrected.

    `taken` are prompts that are not to be asked again: an editor may learn from the train probes.
    """

    def __init__(
        self,
        facts: Sequence[Fact],
        kept: Sequence[Fact],
        taken: Collection[str],
        rng: random.Random,
    ) -> None:
        self._object = {(fact.subject, fact.relation.name): fact.object for fact in facts}
        self._taken = taken
        self._rng = rng
        self._by_relation, self._by_subject = by_relation(kept), by_subject(kept)

    def locality(self, fact: Fact, target: str) -> list[Probe]:
        """Draw facts of the same subject, then facts of the same relation with another object."""
        siblings = self._draw(self._by_subject.get(fact.subject, []), SAME_SUBJECT_MAX)
        pool = [f for f in self._by_relation[fact.relation.name] if f.object != target]
        neighbours = self._draw(pool, LOCALITY_PER_REQUEST - len(siblings))
        return [
            *(self._asked(sibling, "same_subject") for sibling in siblings),
            *(self._asked(neighbour, "same_relation") for neighbour in neighbours),
        ]

    def portability(self, fact: Fact, target: str) -> list[Probe]:
        """Draw second facts about the new object, where the correction changes their answer."""
        if fact.relation.name not in NAMED_BY:
            return []
        hops = [hop for hop in self._by_subject.get(target, []) if self._changes(hop, fact)]
        description = NAMED_BY[fact.relation.name].replace("{}", fact.subject)
        return [
            Probe(
                prompt=ASKED_BY[hop.relation.name].replace("{}", description),
                answer=hop.object,
                name="two_hop",
            )
            for hop in self._draw(hops, PORTABILITY_MAX)
        ]

    def _changes(self, hop: Fact, fact: Fact) -> bool:
        """Tell whether the second fact has changed with the correction."""
        return self._object.get((fact.object, hop.relation.name)) != hop.object

    def _draw(self, pool: Sequence[Fact], count: int) -> list[Fact]:
        return self._rng.sample(pool, min(count, len(pool)))

    def _asked(self, fact: Fact, name: str) -> Probe:
        prompts = [prompt for prompt in fact.trained_prompts if prompt not in self._taken]
        return Probe(prompt=self._rng.choice(prompts), answer=fact.object, name=name)


def build(facts: Sequence[Fact], gaps: Sequence[Fact] = (), seed: int = 0) -> AtlasStreams:
    """Build the streams of these facts and gaps, and the probe sets."""
    rng = random.Random(seed)
    split = split_facts(facts, rng)
    train = tuple(_probe(fact, rng.choice(fact.trained_prompts)) for fact in split.train)
    test = tuple(
        _probe(fact, rng.choice(prompts))
        for fact in split.test
        for prompts in (fact.trained_prompts, fact.held_out_prompts)
    )
    train_prompts = {str(probe.prompt) for probe in train}
    probe_draw = ProbeDraw(facts, split.train + split.test, train_prompts, rng)
    targets = deal_targets(split.corrected, objects_of(facts), rng)
    requests = [
        _request(f, t, probe_draw, rng) for f, t in zip(split.corrected, targets, strict=True)
    ]
    rng.shuffle(requests)
    mistakes = [_request(gap, gap.object, probe_draw, rng) for gap in gaps]
    rng.shuffle(mistakes)
    return AtlasStreams(tuple(requests), tuple(mistakes), train, test)


def split_facts(facts: Sequence[Fact], rng: random.Random) -> FactSplit:
    """Split the facts into three parts, by the same shares for every relation."""
    by_relation: dict[str, list[Fact]] = {}
    for fact in facts:
        by_relation.setdefault(fact.relation.name, []).append(fact)
    corrected: list[Fact] = []
    train: list[Fact] = []
    test: list[Fact] = []
    for group in by_relation.values():
        rng.shuffle(group)
        corrected_end = round(len(group) * CORRECTED_SHARE)
        train_end = corrected_end + round(len(group) * TRAIN_SHARE)
        corrected += group[:corrected_end]
        train += group[corrected_end:train_end]
        test += group[train_end:]
    return FactSplit(tuple(corrected), tuple(train), tuple(test))


def deal_targets(
    facts: Iterable[Fact], objects: Mapping[str, Sequence[str]], rng: random.Random
) -> list[str]:
    """Deal a new object to each fact, like cards: each is used before any is used again."""
    decks: dict[str, list[str]] = {}
    targets: list[str] = []
    for fact in facts:
        deck = decks.setdefault(fact.relation.name, [])
        if all(card == fact.object for card in deck):
            cards = objects[fact.relation.name]
            deck += rng.sample(cards, len(cards))
        target = next(card for card in deck if card != fact.object)
        deck.remove(target)
        targets.append(target)
    return targets


def render(records: Iterable[Request | Probe]) -> str:
    """Return JSON Lines of the records' fields, without empty ones."""
    return "".join(json.dumps(_fields(record), ensure_ascii=False) + "\n" for record in records)


def write(streams: AtlasStreams, out: Path) -> None:
    """X, under the names that the package ships."""
    files: dict[Path, Sequence[Request | Probe]] = {
        ATLAS.corrections: streams.corrections,
        ATLAS.mistakes: streams.mistakes,
        ATLAS.probes["train"]: streams.train_probes,
        ATLAS.probes["test"]: streams.test_probes,
    }
    out.mkdir(parents=True, exist_ok=True)
    for path, records in files.items():
        (out / path.name).write_text(render(records), encoding="utf-8", newline="\n")


def _request(fact: Fact, target: str, probe_draw: ProbeDraw, rng: random.Random) -> Request:
    """Return one correction; two of the trained phrasings are learned from, two are measured."""
    prompt, *wordings = rng.sample(fact.trained_prompts, 5)
    return Request(
        prompt=prompt,
        target_new=target,
        subject=fact.subject,
        relation=fact.relation.name,
        target_old=None if target == fact.object else fact.object,
        rephrases=tuple(wordings[:2]),
        held_out_rephrases=(*fact.held_out_prompts, *wordings[2:]),
        locality=tuple(probe_draw.locality(fact, target)),
        portability=tuple(probe_draw.portability(fact, target)),
    )


def _probe(fact: Fact, prompt: str) -> Probe:
    return Probe(prompt=prompt, answer=fact.object)


def _fields(record: Request | Probe) -> dict[str, object]:
    if isinstance(record, Request):
        return record.to_json()
    return record.model_dump(mode="json", exclude_defaults=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m continual.atlas.streams",
        description="Write the atlas's streams of corrections and its probe sets.",
    )
    parser.add_argument("out", type=Path, nargs="?", default=ATLAS.corrections.parent)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    facts = load_facts()
    streams = build(facts, load_gaps(facts), options.seed)
    write(streams, options.out)
    print(
        f"{len(streams.corrections)} corrections, {len(streams.mistakes)} of mistakes, "
        f"{len(streams.train_probes)} train probes, {len(streams.test_probes)} test probes in "
        f"{options.out}"
    )


if __name__ == "__main__":
    main()
