"""P of answers with neurons suppressed and amplified, and perplexities with relations erased."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks import tables
from benchmarks.knowledge_neurons.worlds import FactWorld
from continual.analysis.neurons import FfnNeuron, GoldToken
from continual.analysis.neurons.choosing import most_frequent
from continual.analysis.neurons.finding import FactNeurons
from continual.analysis.neurons.operations import (
    AMPLIFIED,
    SUPPRESSED,
    in_weights,
    scaled_values,
    token_probabilities,
)
from continual.analysis.neurons.passes import PassMaker

BATCH = 64
ERASED_NEURONS = 20
KINDS = {
    "neurons": "the fact's own neurons",
    "elsewhere": "neurons of a fact of another relation",
    "by_activation": "neurons by activation alone",
}
PUBLISHED = {
    "neurons": {"suppressed": -0.2903, "amplified": 0.3117},
    "by_activation": {"suppressed": -0.0147, "amplified": -0.0127},
}
PUBLISHED_ERASED = {"P19": 1.066, "P27": 0.367, "P106": 1.282, "P937": 1.412}


# --- probabilities --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScaledAnswer:
    """An answer, and neurons to multiply at its place."""

    tokens: tuple[GoldToken, ...]
    neurons: tuple[FfnNeuron, ...] = ()


def probabilities(
    passes: PassMaker, answers: Sequence[ScaledAnswer], factor: float = 1.0
) -> list[float]:
    """Return P of each answer, the mean over its tokens, in passes of texts of one length."""
    asked = [(i, gold) for i, answer in enumerate(answers) for gold in answer.tokens]
    asked.sort(key=lambda item: (len(item[1].ids), len(item[1].source)))
    shares: list[list[float]] = [[] for _ in answers]
    for batch in _batches(asked):
        factors = _factors(passes, [answers[i].neurons for i, _ in batch], factor)
        found = token_probabilities(passes, [gold for _, gold in batch], factors)
        for (i, _), share in zip(batch, found.tolist(), strict=True):
            shares[i].append(share)
    return [fmean(found) for found in shares]


def _batches(asked: Sequence[tuple[int, GoldToken]]) -> Iterator[list[tuple[int, GoldToken]]]:
    batch: list[tuple[int, GoldToken]] = []
    for item in asked:
        if batch and (len(batch) == BATCH or len(batch[0][1].ids) != len(item[1].ids)):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _factors(
    passes: PassMaker, neurons: Sequence[Sequence[FfnNeuron]], factor: float
) -> dict[int, Tensor]:
    factors: dict[int, Tensor] = {}
    shape = (len(neurons), passes.anatomy.ffn_width)
    for row, own in enumerate(neurons):
        for block, place in own:
            factors.setdefault(block, torch.ones(shape))[row, place] = factor
    return factors


# --- suppressed and amplified ---------------------------------------------------------------------


def effects(world: FactWorld, found: Sequence[FactNeurons]) -> list[dict[str, Any]]:
    """Return for each relation the changes of P by each kind of neurons."""
    draw = random.Random(0)
    rows = []
    for relation in relations_of(found):
        own = [fact for fact in found if fact.fact.relation == relation]
        others = [fact for fact in found if fact.fact.relation != relation]
        elsewhere = [draw.choice(others).neurons for _ in own] if others else []
        chosen = {
            "neurons": [fact.neurons for fact in own],
            "elsewhere": elsewhere,
            "by_activation": [fact.by_activation for fact in own],
        }
        row: dict[str, Any] = {"relation": relation, "facts": len(own)}
        row["P"] = fmean(fact.probability for fact in own)
        for kind, neurons in chosen.items():
            row[kind] = _changes(world, own, neurons) if neurons else None
        rows.append(row)
        tables.note(json.dumps(row))
    return rows


def _changes(
    world: FactWorld, facts: Sequence[FactNeurons], neurons: Sequence[tuple[FfnNeuron, ...]]
) -> dict[str, float]:
    answers = [
        ScaledAnswer(prompt.answer, own)
        for fact, own in zip(facts, neurons, strict=True)
        for prompt in fact.prompts
    ]
    passes = world.finder.passes
    before = fmean(probabilities(passes, answers))
    suppressed = fmean(probabilities(passes, answers, SUPPRESSED))
    amplified = fmean(probabilities(passes, answers, AMPLIFIED))
    return {
        "count": fmean(map(len, neurons)),
        "suppressed": suppressed / before - 1,
        "amplified": amplified / before - 1,
    }


def relations_of(found: Sequence[FactNeurons]) -> list[str]:
    """Return the relations with facts, in order."""
    return list(dict.fromkeys(str(fact.fact.relation) for fact in found))


def summary(world: FactWorld, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each kind of neurons: the means over relations, beside the published."""
    result = []
    for kind, label in KINDS.items():
        cells = [row[kind] for row in rows if row[kind] is not None]
        if cells:
            means = {name: fmean(cell[name] for cell in cells) for name in cells[0]}
            published = PUBLISHED.get(kind, {})
            told = {f"published_{name}": value for name, value in published.items()}
            result.append({"model": world.name, "kind": label, **means, **told})
    return result


def intersections(found: Sequence[FactNeurons]) -> dict[str, float]:
    """Return the mean numbers of neurons that two facts share, inside and across relations."""
    shared: dict[bool, list[int]] = {True: [], False: []}
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            is_inside = one.fact.relation == other.fact.relation
            shared[is_inside].append(len(set(one.neurons) & set(other.neurons)))
    return {
        name: fmean(counts) if counts else math.nan
        for name, counts in (("inside", shared[True]), ("across", shared[False]))
    }


# --- erased ---------------------------------------------------------------------------------------


def erased(world: FactWorld, found: Sequence[FactNeurons]) -> list[dict[str, Any]]:
    """Return for each relation to erase the perplexities before and after."""
    answers = {
        relation: [
            ScaledAnswer(prompt.answer)
            for fact in found
            if fact.fact.relation == relation
            for prompt in fact.prompts
        ]
        for relation in relations_of(found)
    }
    before = _logs(world, answers)
    rows = []
    for relation in [name for name in world.erased if name in answers]:
        neurons = most_frequent(
            [fact.neurons for fact in found if fact.fact.relation == relation],
            count=ERASED_NEURONS,
        )
        edited = world.finder.edited
        with in_weights(edited, [scaled_values(edited, neurons, SUPPRESSED)]):
            after = _logs(world, answers)
        own = [_perplexity(logs, [relation]) for logs in (before, after)]
        others = [n for n in answers if n != relation]
        rest = [_perplexity(logs, others) for logs in (before, after)]
        rows.append(
            {
                "model": world.name,
                "relation": relation,
                "neurons": len(neurons),
                "own_before": own[0],
                "own_after": own[1],
                "own_change": own[1] / own[0] - 1,
                "published": PUBLISHED_ERASED.get(relation),
                "others_before": rest[0],
                "others_after": rest[1],
            }
        )
        tables.note(json.dumps(rows[-1]))
    return rows


def _logs(
    world: FactWorld, answers: Mapping[str, Sequence[ScaledAnswer]]
) -> dict[str, list[float]]:
    """Return −log P of every answer, by relation."""
    tiny = torch.finfo(torch.float32).tiny
    flat = [answer for group in answers.values() for answer in group]
    shares = iter(probabilities(world.finder.passes, flat))
    return {
        relation: [-math.log(max(next(shares), tiny)) for _ in group]
        for relation, group in answers.items()
    }


def _perplexity(logs: Mapping[str, Sequence[float]], relations: Sequence[str]) -> float:
    return math.exp(fmean(value for relation in relations for value in logs[relation]))
