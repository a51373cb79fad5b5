"""Models, and the facts whose neurons are looked for in them.

Knows the recipes and the data; leaves the measures to `changes`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.counterfact_model import data_folder
from benchmarks.knowledge_neurons.training import MaskedRecipe, masked_model
from continual.analysis.neurons import MaskedPrompts
from continual.analysis.neurons.finding import NeuronFinder, PromptedFact
from continual.atlas.facts import load_facts
from continual.base import load_base
from continual.embedded import ATLAS
from continual.errors import RequestError
from continual.model import EditedModel
from continual.readers import pararel
from continual.requests import Request
from continual.tasks import make_task, new_settings

MASKED_ERASED = ("P19", "P27", "P106", "P937")
ATLAS_ERASED_MAX = 4


@dataclass(frozen=True)
class FactWorld:
    """A model, and facts to look for in it."""

    name: str
    finder: NeuronFinder
    facts: tuple[PromptedFact, ...]
    erased: tuple[str, ...]


@contextmanager
def masked(options: argparse.Namespace) -> Iterator[FactWorld]:
    """Load or train the masked model; yields it with facts of ParaRel."""
    folder, known = masked_model(
        data_folder(), options.cache, MaskedRecipe(facts=options.taught, epochs=options.epochs)
    )
    base = load_base(folder, "AutoModelForMaskedLM")
    facts = [
        PromptedFact(fact.prompts[: options.prompts], (fact.object,), fact.subject, fact.relation)
        for fact in known
    ]
    language = MaskedPrompts(base.tokenizer, base.context_tokens_max)
    with EditedModel(base) as edited:
        world = FactWorld("masked", NeuronFinder(edited, language), tuple(facts), MASKED_ERASED)
        yield replace(world, facts=first_of_each(facts, options.facts))


@contextmanager
def atlas(options: argparse.Namespace) -> Iterator[FactWorld]:
    """Load the embedded decoder; yields it with facts that it was trained on."""
    facts = [
        PromptedFact(
            fact.trained_prompts[: options.prompts],
            (fact.object,),
            fact.subject,
            fact.relation.name,
        )
        for fact in load_facts()
    ]
    chosen = first_of_each(shuffled(facts), options.facts)
    base = load_base("atlas")
    with EditedModel(base) as edited:
        finder = NeuronFinder(edited, make_task(base, ATLAS.task))
        names = tuple(dict.fromkeys(str(fact.relation) for fact in chosen))
        yield FactWorld("atlas", finder, chosen, names[:: max(1, len(names) // ATLAS_ERASED_MAX)])


@contextmanager
def pretrained(options: argparse.Namespace) -> Iterator[FactWorld]:
    """Load a decoder; yields it with facts of ParaRel that it answers rightly."""
    base = load_base(options.base)
    task = make_task(base, new_settings(base, {"name": "causal"}))
    with EditedModel(base) as edited:
        finder = NeuronFinder(edited, task)
        facts = [
            fact
            for relation in options.relations.split(",")
            for fact in _right(finder, relation, options)
        ]
        yield FactWorld("pretrained", finder, tuple(facts), ())


def _right(
    finder: NeuronFinder, relation: str, options: argparse.Namespace
) -> Iterator[PromptedFact]:
    """Yield facts of a relation with prompts that the model answers rightly."""
    count = 0
    for request in _requests(relation):
        prompts = [
            p for p in (request.prompt, *request.held_out_rephrases) if _says(finder, p, request)
        ]
        if len(prompts) >= finder.thresholds.prompts_min and count < options.facts:
            count += 1
            chosen = tuple(prompts[: options.prompts])
            yield PromptedFact(chosen, (request.target_new,), request.subject, relation)
        if count == options.facts:
            return


def _says(finder: NeuronFinder, prompt: Any, request: Request) -> bool:
    tokens = finder.gold_tokens(prompt, request.target_new)
    return len(tokens) == 1 and finder.passes.read(tokens[0]).is_right


def _requests(relation: str) -> Iterator[Request]:
    """Yield the facts of a relation of ParaRel, in an order that the seed fixes."""
    folder = data_folder() / "pararel"
    lines = (folder / "graphs_json" / f"{relation}.jsonl").read_text("utf-8").splitlines()
    patterns = [str(json.loads(line)["pattern"]) for line in lines]
    text = (folder / "trex_lms_vocab" / f"{relation}.jsonl").read_text("utf-8")
    for fact in shuffled([json.loads(line) for line in text.splitlines()])[:60]:
        try:
            yield pararel.join(fact, patterns, relation)
        except RequestError:
            return


def shuffled(items: Sequence[Any]) -> list[Any]:
    """Return the items in an order that a seed fixes."""
    order = list(items)
    random.Random(0).shuffle(order)
    return order


def first_of_each(facts: Sequence[PromptedFact], count: int) -> tuple[PromptedFact, ...]:
    """Return the first facts of each relation."""
    seen: dict[str | None, int] = {}
    chosen = []
    for fact in facts:
        seen[fact.relation] = seen.get(fact.relation, 0) + 1
        if seen[fact.relation] <= count:
            chosen.append(fact)
    return tuple(sorted(chosen, key=lambda fact: str(fact.relation)))


WORLDS = {"masked": masked, "atlas": atlas, "pretrained": pretrained}
