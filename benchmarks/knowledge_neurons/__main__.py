"""Knowledge neurons: their published tables, run again on a masked and on a causal model.

    python -m benchmarks.knowledge_neurons [--models masked,atlas] [--base DIR] [--facts 8]
                                           [--prompts 4] [--plots DIR] [--json OUT] [--threads N]

For facts that the model has right, the change of P(answer) when a fact's neurons are suppressed and
amplified at the answer's place; beside it the same with the neurons of a fact of another relation,
and with neurons chosen by activation alone. A relation's figure is the mean change over its prompts
relative to their mean P, a model's figure the mean over relations. Then relations are erased: the
20 neurons most frequent over a relation's facts lose their values in the weights, and perplexities,
exp of the mean −log P(answer), are taken of the relation's prompts and of all others.

`masked` is MiniLM with a masked head, trained here on statements of ParaRel; see `training`.
`atlas` is the embedded decoder with its own relations. `--base` is any decoder, asked with the
patterns of ParaRel that end in the object. The ratio of the naive loop's processor time to the
engine's is taken on a prompt of each model, and the largest difference of the two attributions.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import plots, tables
from benchmarks.counterfact_model import default_cache
from benchmarks.knowledge_neurons.changes import (
    ERASED_NEURONS,
    effects,
    erased,
    intersections,
    summary,
)
from benchmarks.knowledge_neurons.figures import bars
from benchmarks.knowledge_neurons.naive import speed
from benchmarks.knowledge_neurons.training import RELATIONS, MaskedRecipe
from benchmarks.knowledge_neurons.worlds import WORLDS, FactWorld
from benchmarks.tables import TextColumn

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
