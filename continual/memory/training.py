"""Trains a scope: pairs from requests, binary cross-entropy, calibration, a report.

SERAC's scope classifier (Mitchell et al. 2022, section 3.3) on frozen embeddings. In scope are a
request's prompt and rephrases; out of scope its locality prompts, and every wording for the other
requests nearest to it. Where requests name their relations, wordings also change places: another
request's wording with this one's subject is in scope if the relation is the same, and out of scope
if it asks for another relation of the same subject.

Requests are split, not pairs: most are learned from, some calibrate, some are reported on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Generator, Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from continual.effects.records import Record
from continual.errors import ScopeError
from continual.memory.encoder import SentenceEncoder
from continual.memory.features import NUMBERS, Features, features, kept_records, seen_queries
from continual.memory.head import ScopeHead, logits
from continual.memory.reliability import Judged, ScopeReport, best_threshold, platt
from continual.memory.scope import CANDIDATES
from continual.memory.subjects import folded
from continual.memory.trained import TrainedScope
from continual.requests import Request

T = TypeVar("T")

REQUESTS_MIN = 20
SPREAD_MIN = 0.01  # the least spread of a number, if it hardly varies in training


@dataclass(frozen=True)
class ScopeTraining:
    """The settings of a scope's training."""

    epochs: int = 6
    batch: int = 256  # pairs
    learning_rate: float = 2e-3  # the highest, of one cycle
    weight_decay: float = 0.01
    dropout: float = 0.1  # of the relations' embeddings
    rank: int = 64
    hidden: int = 32
    swaps: int = 24  # wordings that a request borrows: from its own relation, and from others
    nameless: float = 0.1  # share of requests seen without their subject
    calibrating: float = 0.1  # shares of the requests
    reporting: float = 0.1
    candidates: int = CANDIDATES


@dataclass(frozen=True)
class Wording:
    """A text, and whether it is in scope of the request at this place."""

    text: str
    request: int
    in_scope: bool


def train_scope(
    requests: Sequence[Request],
    encoder: SentenceEncoder,
    generator: Generator,
    training: ScopeTraining | None = None,
) -> tuple[TrainedScope, ScopeReport]:
    """Train a scope on the requests; return it with its report on requests held out from training.

    A request without rephrases to learn from gives its held-out ones: pass requests on which
    nothing will be measured. Raises ``ScopeError`` for fewer than ``REQUESTS_MIN`` requests.
    """
    training = training or ScopeTraining()
    if len(requests) < REQUESTS_MIN:
        raise ScopeError(
            f"a scope can't be trained on {len(requests)} requests: give at least {REQUESTS_MIN}"
        )
    training_pairs, calibration_pairs, report_pairs = (
        _pairs(part, encoder, generator, training) for part in _split(requests, generator, training)
    )
    head = _fit(training_pairs, generator, training)
    raw_logits = head.logits(calibration_pairs[0])
    head = head.calibrated(*platt(raw_logits, calibration_pairs[1]))
    chances = torch.sigmoid(head.logits(calibration_pairs[0]))
    threshold = best_threshold(Judged(chances, calibration_pairs[1]))
    scope = TrainedScope(encoder, head, threshold, training.candidates)
    outcomes = Judged(torch.sigmoid(head.logits(report_pairs[0])), report_pairs[1])
    return scope, ScopeReport.of(outcomes, threshold)


def wordings(requests: Sequence[Request], generator: Generator, swaps: int) -> Iterator[Wording]:
    """Yield every text that the scope learns from."""
    for place, request in enumerate(requests):
        yield from (Wording(text, place, True) for text in _asked(request))
        yield from (Wording(str(probe.prompt), place, False) for probe in request.locality)
    yield from _swapped(requests, generator, swaps)


def are_rivals(one: Request, other: Request) -> bool:
    """Tell whether a wording of one is surely out of the other's scope.

    Two requests on one subject may ask the same, unless they name different relations.
    """
    if one.subject and other.subject and folded(one.subject) == folded(other.subject):
        return bool(one.relation and other.relation and one.relation != other.relation)
    return one.prompt_key != other.prompt_key


def _may_ask(wording: Wording, other: Request) -> bool:
    """Tell whether a text out of one request's scope may be in another's: it names the other's
    subject, and nobody knows which relation it asks for."""
    is_named = other.subject is not None and folded(other.subject) in folded(wording.text)
    return is_named and not wording.in_scope


def _asked(request: Request) -> tuple[str, ...]:
    prompts = (request.prompt, *(request.rephrases or request.held_out_rephrases))
    return tuple(map(str, prompts))


def _swapped(requests: Sequence[Request], generator: Generator, swaps: int) -> Iterator[Wording]:
    """Yield wordings that each request borrows from others about the same kind of subject."""
    places = [i for i, request in enumerate(requests) if request.subject and request.relation]
    for place in places:
        borrower = requests[place]
        kin = [i for i in places if i != place and _kind(requests[i]) == _kind(borrower)]
        for is_same in (True, False):
            pool = [i for i in kin if (requests[i].relation == borrower.relation) is is_same]
            for i in _drawn(pool, swaps, generator):
                (text,) = _drawn(_asked(requests[i]), 1, generator)
                if (subject := str(requests[i].subject)) in text:
                    yield Wording(text.replace(subject, str(borrower.subject)), place, is_same)


def _kind(request: Request) -> str:
    """Return the kind of a relation's subjects: the part before the dot in "people.country"."""
    return str(request.relation).partition(".")[0]


def _drawn(pool: Sequence[T], count: int, generator: Generator) -> list[T]:
    return [pool[i] for i in torch.randperm(len(pool), generator=generator)[:count].tolist()]


def _split(
    requests: Sequence[Request], generator: Generator, training: ScopeTraining
) -> list[list[Request]]:
    """Return the requests to learn from, to calibrate on and to report on."""
    order = [requests[i] for i in torch.randperm(len(requests), generator=generator).tolist()]
    report_end = max(1, round(len(order) * training.reporting))
    calibration_end = report_end + max(1, round(len(order) * training.calibrating))
    return [order[calibration_end:], order[report_end:calibration_end], order[:report_end]]


def _pairs(
    requests: Sequence[Request],
    encoder: SentenceEncoder,
    generator: Generator,
    training: ScopeTraining,
) -> tuple[Features, Tensor]:
    """Return the features of pairs, and 1 for each pair in scope."""
    records = kept_records(encoder, _records(requests, generator, training.nameless))
    samples = list(wordings(requests, generator, training.swaps))
    queries = seen_queries(encoder, [wording.text for wording in samples])
    count = min(training.candidates, len(requests))
    neighbours = queries.similarity(records.embeddings).topk(count, 1).indices.tolist()
    pairs, labels = [], []
    for place, wording in enumerate(samples):
        request = requests[wording.request]
        rivals = [
            i
            for i in neighbours[place]
            if are_rivals(request, requests[i]) and not _may_ask(wording, requests[i])
        ]
        pairs += [(place, i) for i in (wording.request, *rivals)]
        labels += [float(wording.in_scope), *[0.0] * len(rivals)]
    return features(encoder, queries, records, pairs), torch.tensor(labels, dtype=torch.float64)


def _records(requests: Sequence[Request], generator: Generator, nameless: float) -> list[Record]:
    nameless_flags = (torch.rand(len(requests), generator=generator) < nameless).tolist()
    return [
        Record(
            request.id,
            str(request.prompt),
            request.target_new,
            None if is_nameless else request.subject,
        )
        for request, is_nameless in zip(requests, nameless_flags, strict=True)
    ]


def _fit(
    pairs: tuple[Features, Tensor], generator: Generator, training: ScopeTraining
) -> ScopeHead:
    pair_features, labels = pairs
    numbers, query_relations, record_relations = (part.float() for part in pair_features.parts)
    normalization = {"mean": numbers.mean(0), "spread": numbers.std(0).clamp_min(SPREAD_MIN)}
    weights = _start(query_relations.shape[1], generator, training)
    steps = training.epochs * -(-len(pair_features) // training.batch)
    optimizer = torch.optim.AdamW(
        weights.values(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.learning_rate, total_steps=steps + 1
    )
    for batch in _batches(len(pair_features), generator, training):
        relations = (
            _dropped(part[batch], training.dropout, generator)
            for part in (query_relations, record_relations)
        )
        batch_logits = logits({**normalization, **weights}, numbers[batch], *relations)
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(batch_logits, labels[batch].float()).backward()
        optimizer.step()
        cycle.step()
    return ScopeHead(
        {**normalization, **{name: weight.detach() for name, weight in weights.items()}}
    )


def _batches(count: int, generator: Generator, training: ScopeTraining) -> Iterator[Tensor]:
    for _ in range(training.epochs):
        yield from torch.randperm(count, generator=generator).split(training.batch)


def _dropped(rows: Tensor, share: float, generator: Generator) -> Tensor:
    is_kept = torch.rand(rows.shape, generator=generator) >= share
    return rows * is_kept / (1 - share)


def _start(width: int, generator: Generator, training: ScopeTraining) -> Mapping[str, Tensor]:
    """Return weights to learn from, uniform within 1/√fan-in."""
    inputs = len(NUMBERS) + 2 * training.rank
    shapes = {
        "projection": ((training.rank, width), width),
        "hidden_weight": ((training.hidden, inputs), inputs),
        "hidden_bias": ((training.hidden,), inputs),
        "out_weight": ((training.hidden,), training.hidden),
        "out_bias": ((), training.hidden),
    }
    return {
        name: torch.empty(shape)
        .uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        .requires_grad_()
        for name, (shape, fan_in) in shapes.items()
    }
