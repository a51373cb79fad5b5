"""Knowledge neurons: their published tables, run again on a masked and on a causal model.

    python -m benchmarks.knowledge_neurons [--models masked,atlas] [--base DIR] [--facts 8]
                                           [--prompts 4] [--plots DIR] [--json OUT] [--threads N]

For facts that the model has right, the change of P(answer) when a fact's neurons are suppressed and
amplified at the answer's place; beside it the same with the neurons of a fact of another relation,
and with neurons chosen by activation alone. A relation's figure is the mean change over its prompts
relative to their mean P, a model's figure the mean over relations. Then relations are erased: the
20 neurons most frequent over a relation's facts lose their values in the weights, and perplexities,
exp of the mean −log P(answer), are taken of the relation's prompts and of all others.

`masked` is MiniLM with a masked head, trained here on statements of ParaRel; see
`knowledge_neurons_model`. `atlas` is the embedded decoder with its own relations. `--base` is any
decoder, asked with the patterns of ParaRel that end in the object. The ratio of the naive loop's
processor time to the engine's is taken on a prompt of each model, and the largest difference of
the two attributions.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks import plots, tables
from benchmarks.counterfact_model import data_folder, default_cache
from benchmarks.knowledge_neurons_model import RELATIONS, MaskedRecipe, masked_model
from benchmarks.tables import TextColumn
from continual import hooks
from continual.analysis.neurons import FfnNeuron, GoldToken, MaskedPrompts
from continual.analysis.neurons.attribution import attribute
from continual.analysis.neurons.choosing import most_frequent
from continual.analysis.neurons.finding import FactNeurons, NeuronFinder, PromptedFact
from continual.analysis.neurons.operations import (
    AMPLIFIED,
    SUPPRESSED,
    in_weights,
    scaled_values,
    token_probabilities,
)
from continual.analysis.neurons.passes import PassMaker
from continual.atlas.facts import load_facts
from continual.base import load_base
from continual.embedded import ATLAS
from continual.errors import RequestError
from continual.model import EditedModel
from continual.readers import pararel
from continual.requests import Request
from continual.tasks import make_task, new_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 64
ERASED_NEURONS = 20
MASKED_ERASED = ("P19", "P27", "P106", "P937")
ATLAS_ERASED_MAX = 4
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
EFFECTS = (
    TextColumn("model", "model"),
    TextColumn("neurons", "kind"),
    TextColumn("of a fact", "count", ".1f"),
    TextColumn("suppressed", "suppressed", "+.2%"),
    TextColumn("published", "published_suppressed", "+.2%"),
    TextColumn("amplified", "amplified", "+.2%"),
    TextColumn("published", "published_amplified", "+.2%"),
)
ERASED = (
    TextColumn("model", "model"),
    TextColumn("erased", "relation"),
    TextColumn("own before", "own_before", ".2f"),
    TextColumn("after", "own_after", ".2f"),
    TextColumn("change", "own_change", "+.1%"),
    TextColumn("published", "published", "+.1%"),
    TextColumn("others before", "others_before", ".2f"),
    TextColumn("after", "others_after", ".2f"),
)
SPEED = (
    TextColumn("model", "model"),
    TextColumn("way", "way"),
    TextColumn("naive s", "naive_s", ".2f"),
    TextColumn("engine s", "engine_s", ".2f"),
    TextColumn("ratio", "ratio", ".1f"),
    TextColumn("largest score", "largest", ".3g"),
    TextColumn("difference", "difference", ".1g"),
)


@dataclass(frozen=True)
class FactWorld:
    """A model, and facts to look for in it."""

    name: str
    finder: NeuronFinder
    facts: tuple[PromptedFact, ...]
    erased: tuple[str, ...]


# --- models and their facts -----------------------------------------------------------------------


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


# --- the naive loop -------------------------------------------------------------------------------


def speed(world: FactWorld, found: Sequence[FactNeurons]) -> dict[str, Any]:
    """Return the processor time of the naive loop and of the engine on one prompt."""
    prompt = found[0].prompts[0]
    passes, steps = world.finder.passes, world.finder.steps
    gold = prompt.answer[0]
    attribute(passes, [gold], 1)  # the libraries prepare themselves
    began = time.process_time()
    engine = attribute(passes, [gold], steps).scores
    between = time.process_time()
    naive = torch.stack(
        [_naive(passes, gold, block, steps) for block in range(passes.anatomy.block_count)]
    )
    ended = time.process_time()
    return {
        "model": world.name,
        "way": passes.way.__name__,
        "tokens": len(gold.ids),
        "naive_s": ended - between,
        "engine_s": between - began,
        "ratio": (ended - between) / (between - began),
        "largest": float(naive.max()),
        "difference": float((naive - engine).abs().max()),
    }


def _naive(passes: PassMaker, gold: GoldToken, block: int, steps: int) -> Tensor:
    """Attribute one token to a block's neurons: a full forward and backward for each step."""
    model, down = passes.model, passes.anatomy.down_module(passes.model, block)
    inputs = gold.inputs(model.get_input_embeddings().weight.device)
    with torch.no_grad(), hooks.captured(down) as calls:
        model(**inputs)
    row = calls[0].input.reshape(-1, passes.anatomy.ffn_width)[gold.position]
    total = torch.zeros_like(row)
    for step in range(steps):
        scaled = (step / steps * row).requires_grad_()

        def alter(state: Tensor, scaled: Tensor = scaled) -> Tensor:
            flat = state.reshape(-1, state.shape[-1]).clone()
            flat[gold.position] = scaled
            return flat.reshape(state.shape)

        with torch.enable_grad(), hooks.fed(down, alter):
            share = model(**inputs).logits[0, gold.position].float().softmax(-1)[gold.target]
            total += torch.autograd.grad(share, scaled)[0]
    return (row / steps * total).float()


# --- figures --------------------------------------------------------------------------------------


def bars(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw the change of P for each relation: a group of bars, one for each kind of neurons."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    names = [row["relation"] for row in rows]
    width = 0.8 / len(KINDS)
    for number, effect in enumerate(("suppressed", "amplified"), start=1):
        axes = figure.add_subplot(2, 1, number)
        for place, (kind, label) in enumerate(KINDS.items()):
            heights = [100 * row[kind][effect] if row[kind] else 0.0 for row in rows]
            xs = [x + (place - 1) * width for x in range(len(rows))]
            axes.bar(xs, heights, width, label=label)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel("change of P(answer), %")
        axes.set_title(f"{title}: {effect} at the answer's place", fontsize=10)
        rotation = 0 if max(map(len, names)) <= 6 else 40
        ends = "center" if not rotation else "right"
        axes.set_xticks(range(len(rows)), names, fontsize=8, rotation=rotation, ha=ends)
        axes.grid(alpha=0.3, axis="y")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


WORLDS = {"masked": masked, "atlas": atlas, "pretrained": pretrained}


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run all of it on one model; return its record."""
    with WORLDS[name](options) as world:
        began = time.process_time()
        looked = world.finder.find(world.facts, lambda number: _tell(name, number, world))
        seconds = time.process_time() - began
        found = [fact for fact in looked if fact.is_right]
        rows = effects(world, found)
        count = sum(len(fact.prompts) for fact in looked)
        record = {
            "model": name,
            "facts": len(looked),
            "right": len(found),
            "prompts": count,
            "prompt_s": seconds / max(1, count),
            "relations": rows,
            "effects": summary(world, rows),
            "intersections": intersections(found),
            "erased": erased(world, found),
            "speed": speed(world, found),
        }
    if options.plots is not None:
        plots.save(bars(rows, name), options.plots, f"knowledge-neurons-{name}")
    return record


def _tell(name: str, number: int, world: FactWorld) -> None:
    if number % 20 == 0:
        tables.note(f"{name}: {number} of {len(world.facts)} facts")


def main() -> None:
    """Run the benchmark by the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="masked,atlas")
    parser.add_argument("--base", type=Path, metavar="DIR", help="a decoder, in addition")
    parser.add_argument("--relations", default=",".join(RELATIONS), help="of --base")
    parser.add_argument("--facts", type=int, default=8, help="of each relation")
    parser.add_argument("--prompts", type=int, default=4, help="of each fact")
    recipe = MaskedRecipe()
    parser.add_argument("--taught", type=int, default=recipe.facts, help="of a relation, to masked")
    parser.add_argument("--epochs", type=int, default=recipe.epochs, help="of masked's training")
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--plots", type=Path, metavar="DIR")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = [name for name in options.models.split(",") if name]
    records = [run(name, options) for name in [*names, *(["pretrained"] if options.base else [])]]
    for record in records:
        tables.note(json.dumps({k: v for k, v in record.items() if k != "relations"}))
    shown = {"effects": EFFECTS, "erased": ERASED}
    titles = {
        "effects": "Change of P(answer): neurons at its place",
        "erased": f"Perplexities before and after erasing {ERASED_NEURONS} neurons of a relation",
    }
    for key, columns in shown.items():
        tables.show(titles[key], columns, [row for record in records for row in record[key]])
    tables.show("One prompt, processor time", SPEED, [record["speed"] for record in records])
    tables.write_json(options.json, "knowledge_neurons", {"models": records})


if __name__ == "__main__":
    main()
