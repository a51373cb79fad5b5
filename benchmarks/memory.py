"""Measures SERAC and IKE on the atlas, one correction after another.

    python -m benchmarks.memory [--edits N] [--methods serac,ike] [--demonstrations N]
                                [--scope FILE] [--threshold X] [--oracle] [--json OUT]

Measures all earlier edits again after every edit. The table has the metrics at the end, how many
inputs each kind of probe has in scope, and the milliseconds of a query as medians: with a hit in
memory, without one, and with no memory at all. `--oracle` adds a row for IKE as its references
measure it: every rephrase and every locality prompt is given its own edit, whatever a scope says.
The corrections are the ones on which the embedded scope was not trained; IKE's demonstrations are
of the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.capacity import requests_of_atlas
from benchmarks.scope_data import UNSEEN_OF_ATLAS
from benchmarks.scores import drawn, same_subject_locality
from benchmarks.sequential import Made, run
from benchmarks.tables import TextColumn
from continual.memory.answers import AnswerJudge
from continual.memory.recall import MemoryConfig, Recall
from continual.new_store import NewStore, init
from continual.recheck.ledger import HELD_OUT, LOCALITY, TEST, TRAIN
from continual.session import Session
from continual.watch.config import UNWATCHED

QUERIES = 100  # of each kind, timed
ALL = 1_000_000

RATES = ("SR", "GR", "ER", "TrainR", "TestR", "Locality")
COLUMNS = (
    TextColumn("method", "method"),
    TextColumn("edits", "edits", ",d"),
    *(TextColumn(name, name, ".4f") for name in RATES),
    TextColumn("same subject", "same_subject", ".4f"),
    TextColumn("rephrases in scope", "in_scope", ".4f"),
    TextColumn("test probes in scope", "captured", ".4f"),
    TextColumn("hit, ms", "hit_ms", ".1f"),
    TextColumn("no hit, ms", "miss_ms", ".1f"),
    TextColumn("no memory, ms", "bare_ms", ".1f"),
    TextColumn("edit, ms", "edit_ms", ".1f"),
    TextColumn("re-check, ms", "recheck_ms", ".1f"),
)


@dataclass(frozen=True)
class MemorySettings:
    """The settings of a run."""

    edits: int
    config: MemoryConfig
    oracle: bool
    demonstrations: int  # for IKE


def run_atlas(method: str, protocol: MemorySettings) -> list[dict[str, Any]]:
    """Apply the atlas's corrections in a store of their own; return the rows of the table."""
    tables.note(method)
    every = drawn(requests_of_atlas(), ALL)
    requests, rest = every[:UNSEEN_OF_ATLAS], every[UNSEEN_OF_ATLAS:]
    with (
        tempfile.TemporaryDirectory() as folder,
        init(Path(folder) / "store", NewStore(watch=UNWATCHED)) as session,
    ):
        shown = Path(folder) / "shown.jsonl"
        shown.write_text("".join(f"{json.dumps(r.to_json())}\n" for r in rest), encoding="utf-8")
        table = {"demonstrations": str(shown), "count": protocol.demonstrations, "tokens_max": 400}
        session.edited.recall = Recall(session.edited, protocol.config)
        settings = session.settings(chain=(method,), editors={"ike": table})
        made = run(session, session.apply_requests(requests, settings), protocol.edits)
        rows = [_summary(session, made, method)]
        if protocol.oracle and len(session.edited.memory):
            rows.append(_oracle(session, method))
        return rows


def _summary(session: Session, made: Sequence[Made], method: str) -> dict[str, Any]:
    requests = [kept.request for kept in session.run_state.retention.requests.values()]
    asked = [prompt for request in requests for prompt in request.held_out_rephrases]
    near = [one.step for one in made[-50:]]
    return {
        "method": method,
        "edits": len(made),
        **made[-1].rates.to_json(),
        "same_subject": same_subject_locality(session, requests),
        "in_scope": _share_routed(session, (HELD_OUT,)),
        "captured": _share_routed(session, (TRAIN, TEST)),
        **_query_times(session, asked),
        "edit_ms": 1e3 * statistics.median(step.edit_s for step in near),
        "recheck_ms": 1e3 * statistics.median(step.recheck_s for step in near),
    }


def _share_routed(session: Session, roles: Sequence[str]) -> float | None:
    """Return the share of the probes of these roles that a record answers."""
    ledger = session.run_state.ledger
    active = ledger.outcomes()
    routes = [ledger.route(e) for e in ledger.entries if e.role in roles and e.key in active]
    return statistics.fmean(route is not None for route in routes) if routes else None


def _query_times(session: Session, asked: Iterable[str]) -> dict[str, float]:
    """Return the milliseconds of an answer to a prompt new to the encoder, as medians."""
    unseen = [f"Please: {prompt}" for prompt in islice(asked, 4 * QUERIES)]
    hits, misses = [], []
    for prompt in unseen:
        started = time.perf_counter()
        answer = session.answer(prompt, tokens_max=8)
        (misses if answer.route is None else hits).append(time.perf_counter() - started)
    bare = []
    with session.edited.bare():
        for prompt in unseen[:QUERIES]:
            started = time.perf_counter()
            session.model.generate(
                **session.tokenizer(prompt, return_tensors="pt"), max_new_tokens=8, do_sample=False
            )
            bare.append(time.perf_counter() - started)
    times = {"hit_ms": hits, "miss_ms": misses, "bare_ms": bare}
    return {name: 1e3 * statistics.median(found) for name, found in times.items() if found}


def _oracle(session: Session, method: str) -> dict[str, Any]:
    """Score the method as if the right record were known for each probe of a request."""
    answers, bank = AnswerJudge(session.site), session.edited.memory
    places = {bank.records[place].id: place for place in bank.places()}
    found: dict[str, list[bool]] = {}
    for role in (HELD_OUT, LOCALITY):
        entries = [e for e in session.run_state.ledger.entries if e.role == role]
        reads = [answers.read(places[e.owner], e.encoding) for e in entries if e.owner in places]
        found[role] = answers.judge_read([read for read in reads if read is not None])
    return {
        "method": f"{method}, oracle",
        "edits": len(bank),
        "GR": statistics.fmean(found[HELD_OUT]),
        "Locality": statistics.fmean(found[LOCALITY]),
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--methods", default="serac,ike")
    parser.add_argument("--demonstrations", type=int, default=0, help="of IKE, for each edit")
    parser.add_argument("--scope", help="a trained scope's file, or `threshold`")
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--oracle", action="store_true")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    config = MemoryConfig(scope=options.scope, threshold=options.threshold)
    protocol = MemorySettings(options.edits, config, options.oracle, options.demonstrations)
    rows = [row for method in options.methods.split(",") for row in run_atlas(method, protocol)]
    tables.show("Corrections of the atlas in memory", COLUMNS, rows)
    tables.write_json(options.json, "memory", {"rows": rows})


if __name__ == "__main__":
    main()
