"""Writes the gallery's two streams of corrections, of answers and of captions, with their probes.

    python -m continual.gallery.streams OUT [--seed N]

Half of the corrections of answers are about emblems that the model never saw in training: it makes
their names, owners and towns up. The others say what is not so of emblems that it knows. Captions
are corrected to name an owner in the place of colours and shapes. Each request has wordings and
renderings to learn from, others that measure it, and four things beside it that have to stay: a
fact without a picture, another picture with another question, the same question on the most alike
picture, and another question on the same picture. Probes rest on emblems that are never corrected.
The same seed gives the same records and the same pictures. Knows nothing of the model.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from continual.gallery.drawing import NEW_RENDERING, TRAINED_RENDERINGS, drawn
from continual.gallery.questions import Query, of_emblem, of_person
from continual.gallery.scenes import Emblem, Gallery

ANSWERS, CAPTIONS = "answers.jsonl", "captions.jsonl"
PROBES: Mapping[str, str] = {"train": "train_probes.jsonl", "test": "test_probes.jsonl"}
PICTURES = "pictures"  # the folder of the pictures, beside the streams

NEW_ASKED, KNOWN_ASKED, KNOWN_CAPTIONED = 40, 60, 40  # emblems; the other new ones are captioned
TRAIN_PROBED = 100  # of the emblems that are never corrected; the others are test probes
CAPTION = "caption"
TEXT, OTHER, ALIKE, SAME = "text", "other picture", "alike picture", "other question"
"""The names of the probes beside a request."""
Record = dict[str, Any]


@dataclass(frozen=True)
class GalleryStreams:
    """The records of the files: two streams, and two probe sets."""

    answers: tuple[Record, ...]
    captions: tuple[Record, ...]
    train_probes: tuple[Record, ...]
    test_probes: tuple[Record, ...]


@dataclass(frozen=True)
class Correction:
    """A question about an emblem with its new answer, and one about the same picture that stays."""

    emblem: Emblem
    query: Query
    beside: Query


class StreamBuilder:
    """Builds the records of a gallery, and draws their pictures into a folder.

    Each record is drawn by a seed of its own: the first records of a stream are the same, however
    many are built.
    """

    def __init__(self, gallery: Gallery, folder: Path, seed: int = 0) -> None:
        self._gallery, self._folder, self._seed = gallery, folder, seed
        corrected = KNOWN_ASKED + KNOWN_CAPTIONED
        self._corrected, self._others = gallery.emblems[:corrected], gallery.emblems[corrected:]

    def build(self, count: int | None = None, probes: int | None = None) -> GalleryStreams:
        """Draw so many corrections of each stream at most, and so many probes of each set; all
        unless told."""
        train, test = self._others[:TRAIN_PROBED], self._others[TRAIN_PROBED:]
        return GalleryStreams(
            tuple(self._records("answers", self._answers(), count)),
            tuple(self._records("captions", self._captions(), count)),
            tuple(self._probe("train", n, e, 0) for n, e in enumerate(train[:probes])),
            tuple(self._probe("test", n, e, n % 2) for n, e in enumerate(test[:probes])),
        )

    # -- corrections

    def _answers(self) -> Iterator[Correction]:
        for emblem in self._gallery.new_emblems[:NEW_ASKED]:
            *queries, caption = of_emblem(emblem)
            yield from (Correction(emblem, query, caption) for query in queries)
        draw = self._random("targets")
        for emblem in self._corrected[:KNOWN_ASKED]:
            _, *queries, caption = of_emblem(emblem)
            for query in queries:
                yield Correction(emblem, self._changed(query, draw), caption)

    def _captions(self) -> Iterator[Correction]:
        new, known = self._gallery.new_emblems[NEW_ASKED:], self._corrected[KNOWN_ASKED:]
        for emblem in (*new, *known):
            name, *_, caption = of_emblem(emblem)
            target = f"the arms of {emblem.owner}"
            query = Query(CAPTION, caption.phrasings, target, caption.key)
            yield Correction(emblem, query, name)

    def _changed(self, query: Query, draw: random.Random) -> Query:
        """Return the query with another emblem's answer."""
        queries = (q for emblem in self._gallery.emblems for q in of_emblem(emblem))
        answers = {q.answer for q in queries if q.kind == query.kind} - {query.answer}
        return Query(query.kind, query.phrasings, draw.choice(sorted(answers)), query.key)

    def _records(
        self, name: str, corrections: Iterable[Correction], count: int | None
    ) -> Iterator[Record]:
        order = list(corrections)
        self._random(name).shuffle(order)
        for number, correction in enumerate(order[:count]):
            yield self._request(correction, self._random(f"{name} {number}"), f"{name}-{number}")

    def _request(self, correction: Correction, draw: random.Random, name: str) -> Record:
        """Return a request; two wordings and one rendering are learned from."""
        emblem, query = correction.emblem, correction.query
        prompt, *wordings = draw.sample(query.trained, 4)
        own, *renderings = draw.sample(TRAINED_RENDERINGS, 3)

        def rendered(words: str, rendering: str) -> Record:
            return {"prompt": words, "image": self._picture(emblem, rendering, draw, name)}

        first = rendered(prompt, own)
        learned, *measured = (
            rendered(words, rendering)
            for words, rendering in zip(
                (prompt, wordings[2], wordings[2]), (*renderings, NEW_RENDERING), strict=True
            )
        )
        return {
            **first,
            "target_new": query.answer,
            "rephrases": [*wordings[:2], learned],
            "held_out_rephrases": [*query.held_out, *measured],
            "locality": list(self._beside(correction, first["image"], draw, name)),
        }

    def _beside(
        self, correction: Correction, picture: str, draw: random.Random, name: str
    ) -> Iterator[Record]:
        """Yield four questions beside a correction."""
        emblem, query, beside = correction.emblem, correction.query, correction.beside
        fact = draw.choice(of_person(draw.choice(self._gallery.people)))
        yield {"prompt": draw.choice(fact.trained), "answer": fact.answer, "name": TEXT}
        other = draw.choice(self._others)
        asked = draw.choice(of_emblem(other))
        yield {**self._asked(other, asked, asked.trained, draw, f"{name}-other"), "name": OTHER}
        alike = max(self._others, key=lambda known: _shared(emblem, known))
        (same,) = (q for q in of_emblem(alike) if q.kind == query.kind)
        yield {**self._asked(alike, same, same.trained, draw, f"{name}-alike"), "name": ALIKE}
        prompt = draw.choice(beside.trained)
        yield {"prompt": prompt, "answer": beside.answer, "image": picture, "name": SAME}

    # -- probes

    def _probe(self, name: str, number: int, emblem: Emblem, held_out: int) -> Record:
        draw = self._random(f"{name} {number}")
        query = draw.choice(of_emblem(emblem))
        wordings = query.held_out if held_out else query.trained
        return self._asked(emblem, query, wordings, draw, f"{name}-{number}")

    def _asked(
        self, emblem: Emblem, query: Query, wordings: Sequence[str], draw: random.Random, name: str
    ) -> Record:
        picture = self._picture(emblem, draw.choice(TRAINED_RENDERINGS), draw, name)
        return {"prompt": draw.choice(wordings), "answer": query.answer, "image": picture}

    def _picture(self, emblem: Emblem, rendering: str, draw: random.Random, name: str) -> str:
        """Draw a picture into the folder; return its path beside the streams."""
        path = Path(PICTURES) / f"{name}-{rendering}.png"
        (self._folder / PICTURES).mkdir(parents=True, exist_ok=True)
        drawn(emblem, rendering, draw).save(self._folder / path)
        return path.as_posix()

    def _random(self, name: str) -> random.Random:
        return random.Random(f"{self._seed} {name}")


def write(
    folder: Path,
    gallery: Gallery | None = None,
    seed: int = 0,
    count: int | None = None,
    probes: int | None = None,
) -> GalleryStreams:
    """Write streams, probes and pictures into a folder; return the records. See
    `StreamBuilder.build`."""
    folder.mkdir(parents=True, exist_ok=True)
    streams = StreamBuilder(gallery or Gallery(), folder, seed).build(count, probes)
    files: dict[str, Iterable[Record]] = {
        ANSWERS: streams.answers,
        CAPTIONS: streams.captions,
        PROBES["train"]: streams.train_probes,
        PROBES["test"]: streams.test_probes,
    }
    for name, records in files.items():
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / name).write_text("".join(lines), encoding="utf-8", newline="\n")
    return streams


def _shared(emblem: Emblem, other: Emblem) -> int:
    """Count the traits that two emblems share."""
    traits = ("outline", "field", "charge", "tint")
    return sum(getattr(emblem, trait) == getattr(other, trait) for trait in traits)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    streams = write(options.out, seed=options.seed)
    print(
        f"{len(streams.answers)} corrections of answers, {len(streams.captions)} of captions, "
        f"{len(streams.train_probes)} train probes, {len(streams.test_probes)} test probes in "
        f"{options.out}"
    )


if __name__ == "__main__":
    main()
