"""Measures 500 CounterFact corrections, single or in batches, on a model that knows the facts.

    python -m benchmarks.counterfact [--records N] [--editor E] [--batch-size N] [--minutes M]
                                     [--cache DIR] [--model DIR] [--json OUT]

The benchmark trains the model and keeps it in a cache; `--model` takes any transformers directory
instead. It edits only records whose true fact the model knows. CounterFact's rephrases are held out
(GR), its neighbourhood prompts must keep their answers (Locality), and facts that are never edited
give TrainR and TestR. CounterFact's scores (ES, PS, NS, S) come at the end. Several editors are a
chain; the settings are for the first one.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import batches, sequential, tables
from benchmarks.capacity import EDITORS as WEIGHT_EDITORS
from benchmarks.counterfact_model import (
    Knowledge,
    data_folder,
    default_cache,
    load_knowledge,
    recipe,
    trained_model,
)
from benchmarks.scores import scores
from benchmarks.tables import TextColumn
from continual.atlas.facts import Fact
from continual.atlas.measure import accuracy
from continual.embedded import ATLAS
from continual.new_store import NewStore, init
from continual.requests import Probe, Request
from continual.session import Session

RECORDS = 500
FACTS = 1500
MARKS = (100, 300, 500)
SCORE_COLUMNS = (
    TextColumn("edits", "edits", ",d"),
    *(TextColumn(name, name, ".3f") for name in ("ES", "PS", "NS", "S")),
)
ACCURACY_COLUMNS = (
    TextColumn("asked before the first edit", "asked"),
    TextColumn("probes", "probes", ",d"),
    TextColumn("right", "right", ".3f"),
)


def probe_sets(knowledge: Knowledge) -> dict[str, list[Probe]]:
    """Return probes on facts that are never edited, one half as training and one as test probes.

    Test probes use phrasings that the model was trained on with other subjects only.
    """
    draw = random.Random(0)
    others = list(knowledge.others)
    draw.shuffle(others)
    half = len(others) // 2
    asked = {probe.prompt for request in knowledge.requests for probe in request.locality}
    trained = [(f, [p for p in f.trained_prompts if p not in asked]) for f in others[:half]]
    unseen = [(f, list(f.held_out_prompts)) for f in others[half:]]
    return {"train": _drawn(trained, draw), "test": _drawn(unseen, draw)}


def _drawn(asked: Iterable[tuple[Fact, list[str]]], draw: random.Random) -> list[Probe]:
    return [Probe(prompt=draw.choice(p), answer=f.object) for f, p in asked if p]


def before(
    session: Session, requests: Sequence[Request], probes: dict[str, list[Probe]]
) -> list[dict[str, Any]]:
    """Return the share of right answers before the first edit, for each set of prompts."""
    facts = [(r, r.target_old or "") for r in requests]
    asked = {
        "CounterFact's prompts": [Probe(prompt=r.prompt, answer=a) for r, a in facts],
        "CounterFact's rephrases": [
            Probe(prompt=p, answer=a) for r, a in facts for p in r.held_out_rephrases
        ],
        "neighbourhood prompts": [probe for r in requests for probe in r.locality],
        "other facts, trained phrasing": probes["train"],
        "other facts, held-out phrasing": probes["test"],
    }
    return [
        {"asked": name, "probes": len(found), "right": accuracy(session.site, found).share}
        for name, found in asked.items()
        if found
    ]


def known(session: Session, requests: Sequence[Request]) -> list[Request]:
    """Return the requests whose true fact the model answers rightly at their own prompt."""
    encodings = [session.task.encode(r.prompt, r.target_old or "") for r in requests]
    right = session.site.judge_in_full(encodings)
    return [request for request, is_right in zip(requests, right, strict=True) if is_right]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train or load the model and apply the records; return the rows of all tables by name."""
    data = data_folder()
    knowledge = load_knowledge(data, options.facts)
    directory = options.model or trained_model(
        knowledge, recipe(options.minutes, options.epochs), data, options.cache
    )
    probes = probe_sets(knowledge)
    with tempfile.TemporaryDirectory() as folder:
        new = NewStore(
            str(directory),
            task={"name": "causal"} if options.model else ATLAS.task,
            train_probes=_written(Path(folder) / "train.jsonl", probes["train"]),
            test_probes=_written(Path(folder) / "test.jsonl", probes["test"]),
        )
        with init(Path(folder) / "store", new) as session:
            knows = before(session, knowledge.requests, probes)
            tables.show("What the model knows", ACCURACY_COLUMNS, knows)
            chain = options.editor.split(",")
            requests = known(session, knowledge.requests)[: options.records]
            settings = session.settings(
                chain=tuple(chain),
                editors={chain[0]: options.settings},
                batch_size=options.batch_size,
            )
            if set(chain) & set(WEIGHT_EDITORS):
                collect_statistics(session, knowledge)
            steps = session.apply_requests(requests, settings)
            if options.batch_size > 1:
                marks = [batches.summary(session, step) for step in steps]
            else:
                marks = sequential.summaries(sequential.run(session, steps, len(requests)), MARKS)
            found = {"edits": len(requests), **scores(session, requests)}
    return {"knows": knows, "marks": marks, "scores": found}


def collect_statistics(session: Session, knowledge: Knowledge) -> None:
    """Collect key statistics over the model's training text: every fact in every trained
    phrasing."""
    texts = [f"{prompt} {f.object}\n" for f in knowledge.facts for prompt in f.trained_prompts]
    random.Random(0).shuffle(texts)
    for _ in session.statistics.collect(texts):
        pass


def _written(path: Path, probes: Iterable[Probe]) -> Path:
    lines = [json.dumps({"prompt": p.prompt, "answer": p.answer}) + "\n" for p in probes]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--facts", type=int, default=FACTS, help="how many facts are trained")
    parser.add_argument("--minutes", type=float, default=14.0, help="time for the training")
    parser.add_argument("--epochs", type=int, default=60, help="epochs at most")
    parser.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a model directory instead")
    parser.add_argument("--editor", default="tpatcher")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--settings", type=json.loads, default={}, help="of the editor, as JSON")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record = measure(options)
    title = f"Sequential corrections of CounterFact by {options.editor}"
    columns = sequential.COLUMNS if options.batch_size == 1 else batches.SUMMARY_COLUMNS
    tables.show(title, columns, record["marks"])
    tables.show("CounterFact's scores", SCORE_COLUMNS, [record["scores"]])
    made_with = {"editor": options.editor, "settings": options.settings}
    tables.write_json(options.json, "counterfact", {**made_with, **record})


if __name__ == "__main__":
    main()
