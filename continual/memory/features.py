"""A trained scope's features of a pair: a few numbers, and the two relations as vectors.

An input is about an edit when it names the edit's subject and asks the same of it. So the subject
is looked for by its words; and it is masked, in the input's last sentence as in the record's
prompt, so that the embeddings of the rest compare the relations and not the names. Each pair's
features depend on nothing but the pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from continual.effects.records import EmbeddedRecords, Record
from continual.memory.encoder import SentenceEncoder
from continual.memory.inputs import Queries
from continual.memory.subjects import (
    Presence,
    Word,
    masked,
    names,
    overlap,
    presence,
    segment,
    words,
)
from continual.picture_marks import without_marks

PRESENT_MIN = 0.3  # share of a subject's words from which on the relations are compared
NUMBERS = (
    "cosine of the whole",
    "cosine of the last sentence",
    "share of the subject's words",
    "whether all of them are there",
    "whether the name goes on",
    "whether the record names its subject",
    "cosine of the relations",
    "share of the prompt's words",
    "share of the last sentence's words",
)


@dataclass(frozen=True)
class Features:
    """The features of p pairs."""

    numbers: Tensor  # [p, len(NUMBERS)] float64
    asked: Tensor  # [p, d] the input's last sentence without the subject; zero if it isn't named
    kept: Tensor  # [p, d] the record's prompt without the subject; likewise

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """All tensors, in order."""
        return self.numbers, self.asked, self.kept


def seen_queries(encoder: SentenceEncoder, texts: Sequence[str]) -> Queries:
    """Embed inputs as a whole and by their last sentence: [q, 2, d]."""
    vectors = encoder.embed([*texts, *map(segment, texts)])
    return Queries(tuple(texts), torch.stack([vectors[: len(texts)], vectors[len(texts) :]], 1))


def kept_records(encoder: SentenceEncoder, records: Sequence[Record]) -> EmbeddedRecords:
    """Embed records by prompt and subject, half each: inputs ask for the subject in other words."""
    prompts = encoder.embed([record.prompt for record in records])
    subjects = encoder.embed([record.subject or record.prompt for record in records])
    return EmbeddedRecords(
        tuple(records), torch.nn.functional.normalize(prompts + subjects, dim=-1)
    )


@dataclass(frozen=True)
class _PairWords:
    """One pair as words."""

    named: Presence
    asked: str  # the last sentence, the subject masked
    kept: str  # the prompt, the subject masked
    prompt_share: float
    segment_share: float
    has_subject: bool

    @property
    def is_named(self) -> bool:
        return self.named.share >= PRESENT_MIN


def features(
    encoder: SentenceEncoder,
    queries: Queries,
    records: EmbeddedRecords,
    pairs: Sequence[tuple[int, int]],
) -> Features:
    """Return the features of (query, record) pairs."""
    texts = [without_marks(text) for text in queries.texts]
    matches = [_look(texts[q], _in_words(records.records[r])) for q, r in pairs]
    query_relations = _relations(
        encoder, [pair.asked if pair.is_named else None for pair in matches]
    )
    record_relations = _relations(
        encoder, [pair.kept if pair.is_named else None for pair in matches]
    )
    cosines = part_cosines(queries, records, pairs)
    relations = (query_relations * record_relations).sum(-1)
    rest = [
        [
            pair.named.share,
            float(pair.named.share > 0.999),
            float(pair.named.is_part),
            float(pair.has_subject),
            relation,
            pair.prompt_share,
            pair.segment_share,
        ]
        for pair, relation in zip(matches, relations.tolist(), strict=True)
    ]
    numbers = torch.tensor(rest, dtype=torch.float64).reshape(len(matches), len(NUMBERS) - 2)
    return Features(torch.cat([cosines, numbers], 1), query_relations, record_relations)


def part_cosines(
    queries: Queries, records: EmbeddedRecords, pairs: Sequence[tuple[int, int]]
) -> Tensor:
    """Return [p, s] float64: the cosine of each part of a pair's input with its record.

    Summed row by row, as a matrix product may round a pair by the pairs beside it.
    """
    inputs = queries.embeddings[[pair[0] for pair in pairs]].double()  # [p, s, d]
    vectors = records.embeddings[[pair[1] for pair in pairs]].double()
    return (inputs * vectors.unsqueeze(1)).sum(-1)


def subject_of(record: Record) -> list[Word]:
    """Return the words of a record's subject; of a record without one, the names in its prompt."""
    return words(record.subject) if record.subject else names(record.prompt)


def _in_words(record: Record) -> Record:
    """Return a record without the pictures in its prompt."""
    return replace(record, prompt=without_marks(record.prompt))


def _look(text: str, record: Record) -> _PairWords:
    sentence, subject = segment(text), subject_of(record)
    match = presence(subject, sentence)
    if match.share < PRESENT_MIN and sentence != text:
        text_match = presence(subject, text)
        if text_match.share > match.share:
            sentence, match = text, text_match
    record_match = presence(subject, record.prompt)
    query_frame, record_frame = (
        masked(sentence, match.spans),
        masked(record.prompt, record_match.spans),
    )
    return _PairWords(
        match,
        query_frame,
        record_frame,
        overlap(words(record_frame), words(query_frame)),
        overlap(words(query_frame), words(record_frame)),
        bool(record.subject),
    )


def _relations(encoder: SentenceEncoder, texts: Sequence[str | None]) -> Tensor:
    """Return [p, d] float64 vectors; zero where there is no text."""
    indices = [i for i, text in enumerate(texts) if text is not None]
    vectors = torch.zeros(len(texts), encoder.width, dtype=torch.float64)
    if indices:
        vectors[indices] = encoder.embed([text for text in texts if text is not None]).double()
    return vectors
