"""Measures whether the embedded model passes the bars that let it stand in for a large one.

    python benchmarks/atlas.py [--model DIR] [--json OUT] [--seed N]

Prints a table, writes it as JSON with `--json`, and exits with 1 if the model misses a bar.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from continual.atlas.facts import load_facts
from continual.atlas.measure import Sampler, accuracy, mediation
from continual.base import PretrainedBase, load_base
from continual.embedded import ATLAS
from continual.model import EditedModel
from continual.site import Site
from continual.tasks import make_task

BARS = {"trained": 0.98, "held_out": 0.90, "overriding": 0.95, "unaffected": 0.95}
SIZES = {"trained": 5000, "held_out": 5000, "overriding": 2000, "unaffected": 1000}
MEDIATION_BAR = 0.95  # at the best block
MEDIATED_FACTS = 200
MEDIATING_BLOCKS = (0, 1, 2)
TITLES = {
    "trained": "trained phrasings",
    "held_out": "held-out phrasings",
    "overriding": "a new fact in the context overrides",
    "unaffected": "unaffected by an unrelated new fact",
    "mediation": "one hidden state replaces a fact",
}


@dataclass(frozen=True)
class Measure:
    """One row of the table, with its parts."""

    name: str
    share: float
    count: int
    bar: float
    parts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return self.share >= self.bar


def measure(base: PretrainedBase, seed: int) -> Iterator[Measure]:
    """Yield all measures of a model, with samples drawn by the seed."""
    with EditedModel(base) as edited:
        site = Site(edited, make_task(base, ATLAS.task))
        sampler = Sampler(load_facts(), random.Random(seed))
        for name, bar in BARS.items():
            found = accuracy(site, getattr(sampler, name)(SIZES[name]))
            yield Measure(name, found.share, found.count, bar, found.by_name)
        yield measure_mediation(site, sampler)


def measure_mediation(site: Site, sampler: Sampler) -> Measure:
    """Measure mediation: the best block's share, with every block's share and steps as parts."""
    replacements = sampler.replacements(MEDIATED_FACTS)
    blocks = [mediation(site, replacements, block) for block in MEDIATING_BLOCKS]
    parts = {
        f"block {found.block}": {
            "share": found.share,
            "steps_median": statistics.median(found.needed) if found.needed else None,
            "steps_max": max(found.needed, default=None),
        }
        for found in blocks
    }
    best = max(found.share for found in blocks)
    return Measure("mediation", best, len(replacements), MEDIATION_BAR, parts)


def show(measures: list[Measure], seconds: float) -> None:
    table = Table(title="The atlas against its bars", title_justify="left")
    table.add_column("measure")
    for column in ("count", "share", "bar", ""):
        table.add_column(column, justify="right")
    for found in measures:
        verdict = "met" if found.met else "missed"
        row = (TITLES[found.name], str(found.count), f"{found.share:.4f}", f"{found.bar:.2f}")
        table.add_row(*row, verdict, style=None if found.met else "bold red")
        for part, value in notable(found):
            table.add_row(f"  {part}", "", value, "", "", style="dim")
    console = Console()
    console.print(table)
    console.print(f"{seconds:.0f} s")


def notable(found: Measure) -> Iterator[tuple[str, str]]:
    """Yield the parts to print: blocks, kinds of distractor, and the two weakest relations."""
    if found.name == "mediation":
        for part, value in found.parts.items():
            steps = f"{value['steps_median']:.0f}, at most {value['steps_max']} steps"
            yield f"{part}: {steps}", f"{value['share']:.4f}"
        return
    weakest = sorted(found.parts.items(), key=lambda part: part[1])
    for part, share in weakest[: 3 if found.name == "unaffected" else 2]:
        yield part, f"{share:.4f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default=ATLAS.name, help="a model directory (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="where to write the measures")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    base = load_base(options.model)
    measures = list(measure(base, options.seed))
    seconds = time.perf_counter() - started
    show(measures, seconds)
    if options.json:
        report = {
            "benchmark": "atlas",
            "model": options.model,
            "fingerprint": base.fingerprint,
            "seed": options.seed,
            "seconds": round(seconds, 1),
            "measures": [{**asdict(found), "met": found.met} for found in measures],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if all(found.met for found in measures) else 1


if __name__ == "__main__":
    sys.exit(main())
