"""Calibrated defaults on models that no setting was made for, beside the grid they come from.

    python -m benchmarks.calibration [--worlds W,W2] [--cache DIR] [--editor memit] [--edits N]
                                     [--batch-size N] [--grid] [--plot FILE] [--json OUT]

Each world of `calibration_worlds` gets a store as `cedit init` makes it; corrections are applied
with the editor's defaults, so that it is calibrated at its first use, on the stream itself. With
`--grid` the same corrections are also applied at every block and place of the grid, with the other
settings as they were chosen and without limits (no budget, nothing watched), to compare the choice
with its alternatives. GR counts phrasings that no edit has seen.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import tables
from benchmarks.calibration_worlds import WORLDS, World, WorldFact, facts_of, model_of
from benchmarks.tables import TextColumn
from continual.calibration.of_store import StoreCalibration
from continual.calibration.plotting import draw
from continual.new_store import NewStore, init
from continual.session import Session, open_session

PROBES = 200  # of each set
SITE = ("blocks", "place", "block")
"""The settings that name where an editor edits."""
METRICS = ("SR", "GR", "ER", "TrainR", "TestR", "Locality", "Watch", "Neighbours")
COLUMNS = (
    TextColumn("world", "world"),
    TextColumn("run", "run"),
    TextColumn("edits", "edits", ",d"),
    TextColumn("applied", "applied", ",d"),
    *(TextColumn(name, name, ".3f") for name in METRICS),
    TextColumn("CPU s", "seconds", ",.0f"),
)


def corrections_of(world: World, facts: Sequence[WorldFact], count: int) -> list[dict[str, Any]]:
    """Return corrections that give `count` facts another object. The same question about another
    person is their locality probe."""
    draw_ = random.Random(world.seed + 1)
    records = []
    for fact in facts[:count]:
        objects = [o for o in world.objects[fact.relation] if o != fact.object]
        others = [f for f in facts[count:] if f.relation == fact.relation]
        other = draw_.choice(others)
        records.append(
            {
                "prompt": fact.trained[0],
                "target_new": draw_.choice(objects),
                "target_old": fact.object,
                "subject": fact.subject,
                "relation": fact.relation,
                "held_out_rephrases": list(fact.held_out),
                "locality": [{"prompt": other.trained[0], "answer": other.object}],
            }
        )
    return records


def _lines(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def store_of(world: World, cache: Path, edits: int) -> tuple[Path, Path]:
    """Make a new store of a world's model, and its stream; return the paths of both."""
    facts = facts_of(world)
    random.Random(world.seed + 2).shuffle(facts)
    rest = facts[edits:]
    train, test = rest[:PROBES], rest[PROBES : 2 * PROBES]
    folder = cache / f"store-{world.name}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(cache / f"store-{world.name}.files", ignore_errors=True)
    files = cache / f"store-{world.name}.files"
    files.mkdir()
    probes = {
        "train_probes": [{"prompt": f.trained[0], "answer": f.object} for f in train],
        "test_probes": [{"prompt": f.held_out[0], "answer": f.object} for f in test],
    }
    named = {name: _lines(files / f"{name}.jsonl", lines) for name, lines in probes.items()}
    init(folder, NewStore(str(model_of(world, cache)), **named)).close()
    return folder, _lines(files / "stream.jsonl", corrections_of(world, facts, edits))


def run(
    session: Session, stream: Path, name: str, options: argparse.Namespace, **changes: Any
) -> dict[str, Any]:
    """Apply all corrections, go back to base, and return the row of the table."""
    began = time.process_time()
    records = [json.loads(line) for line in stream.read_text(encoding="utf-8").splitlines()]
    steps = session.apply(records, editor=options.editor, batch_size=options.batch_size, **changes)
    seconds = time.process_time() - began
    session.settle()
    outcomes = [outcome.outcome for step in steps for outcome in step.outcomes]
    rates = steps[-1].measured
    assert rates is not None
    row = {"run": name, "edits": len(records), "applied": outcomes.count("applied")}
    row |= {metric: getattr(rates.rates, metric) for metric in METRICS}
    reasons = {
        str(o.reason)[:160] for step in steps for o in step.outcomes if o.outcome == "failed"
    }
    for reason in sorted(reasons)[:3]:
        tables.note(f"  refused: {reason}")
    session.rollback("base")
    return {**row, "seconds": seconds}


def grid(session: Session, stream: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for every alternative of the first axis, measured on the corrections themselves
    without a budget or watching."""
    known = StoreCalibration.of(session).known(options.editor, {})
    assert known is not None and known.chosen is not None
    session.store.settings.pop("calibration")  # from here on nothing is measured by itself
    axis = known.trials[0].axis
    for evidence in known.of_axis(axis):
        site = {name: evidence.settings[name] for name in SITE if name in evidence.settings}
        settings = {**known.chosen, **site, "drift_max": 1e9}
        name = " ".join(f"{key}={value}" for key, value in site.items())
        tables_ = {options.editor: settings}
        yield run(session, stream, name, options, editors=tables_, watch=None)


def measure(world: World, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of a world."""
    folder, stream = store_of(world, options.cache, options.edits)
    with open_session(folder) as session:
        session.listener.note = tables.note
        yield run(session, stream, "defaults, calibrated", options)
        unwatched = {"watch": None}
        yield run(session, stream, "the same, nothing watched", options, **unwatched)
        known = StoreCalibration.of(session).known(options.editor, {})
        if known is not None and options.plot is not None:
            draw([known], options.plot.with_stem(f"{options.plot.stem}-{world.name}"))
        if options.grid:
            yield from grid(session, stream, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "cedit-benchmarks")
    parser.add_argument("--editor", default="memit")
    parser.add_argument("--edits", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.cache.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.worlds.split(","):
        for row in measure(WORLDS[name], options):
            rows.append({"world": name, **row})
            tables.note(json.dumps(rows[-1]))
    tables.show(f"{options.editor}, batches of {options.batch_size}", COLUMNS, rows)
    tables.write_json(options.json, "calibration", {"rows": rows})


if __name__ == "__main__":
    main()
