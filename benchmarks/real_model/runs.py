"""A run: a stream of corrections through one chain of editors, asked about before and behind it.

Each run has a folder with its store, its stream, the answers, and its costs. An interrupted run
goes on in its store; the row of a finished run is read from its files.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import tables
from benchmarks.efficiency import forget_peak, memory_mb
from benchmarks.real_model import own_text
from benchmarks.real_model.asking import BaseAnswers, Outside, asked, wrong_facts
from benchmarks.real_model.measures import AnswerComparison, WrittenAnswer, measures, routing
from benchmarks.real_model.questions import (
    CONTINUATION,
    CounterFactRecord,
    QuestionCounts,
    StreamQuestion,
    correction,
    load_facts,
    shuffled,
)
from continual.editors.chains import chain_of, default_chain
from continual.locate_then_edit.config import default_blocks
from continual.new_store import NewStore, init
from continual.session import Session, open_session
from continual.streams import open_stream

DEFAULT = "default"  # the chain of a new store
TASK = "causal"
BATCHED = {"memit": 50, "emmet": 50, "alphaedit": 50}
"""Requests in a step, for the editors that take many at once; one for all others."""
WITH_STATISTICS = frozenset({"memit", "rome", "emmet", "alphaedit"})
ANSWERS, COSTS, STREAM, STORE = "answers.json", "costs.json", "stream.jsonl", "store"
START_TOKENS = 3


@dataclass(frozen=True)
class SharedSetup:
    """The model, the data, the folders and the questions that all runs of a command share."""

    model: Path
    data: Path
    cache: Path
    output: Path
    edits: int = 100
    survey: QuestionCounts = field(default_factory=QuestionCounts)


@dataclass(frozen=True)
class ChainRun:
    """One run: the editors of its chain, and their settings."""

    editors: str  # joined by commas, or a chain by its name
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # [editor.NAME]
    label: str | None = None  # of its row, if it is not `editors`

    @property
    def name(self) -> str:
        """The name of its row and its folder."""
        return self.label or self.editors.replace(",", "+")

    @property
    def chain(self) -> tuple[str, ...]:
        """The editors, tried in turn."""
        return default_chain(TASK) if self.editors == DEFAULT else chain_of(self.editors, TASK)

    @property
    def batch_size(self) -> int:
        """Requests in a step."""
        return BATCHED.get(self.chain[0], 1)


@dataclass(frozen=True)
class Finished:
    """A run's answers and its costs."""

    comparisons: tuple[AnswerComparison, ...]
    costs: Mapping[str, Any]

    @property
    def targets(self) -> list[str]:
        """The targets of the stream."""
        return list(dict.fromkeys(q.target for c in self.comparisons if (q := c.question).target))

    def row(self, name: str) -> dict[str, Any]:
        """Return the measures from outside, with cedit's own rates under `rates`."""
        return {"editor": name, **self.costs, **measures(self.comparisons, self.targets)}

    def routing(self, name: str) -> dict[str, Any] | None:
        """Return shares of questions that the memory answers; None for a run with an empty
        memory."""
        if not self.costs["records"]:
            return None
        return {"editor": name, "records": self.costs["records"], **routing(self.comparisons)}


def run(case: ChainRun, plan: SharedSetup) -> Finished:
    """Make a run, or read it from its files if it is finished."""
    folder = plan.output / case.name
    if not (folder / COSTS).exists():
        tables.note(case.name)
        folder.mkdir(parents=True, exist_ok=True)
        with _session(plan, folder / STORE) as session:
            _made(session, case, plan, folder)
        del session
        gc.collect()  # a session and its model name each other, and the next run brings its own
    entries = json.loads((folder / ANSWERS).read_text(encoding="utf-8"))
    costs = json.loads((folder / COSTS).read_text(encoding="utf-8"))
    return Finished(tuple(map(AnswerComparison.from_json, entries)), costs)


def _session(plan: SharedSetup, store: Path) -> Session:
    if store.exists():
        return open_session(store)
    return init(store, NewStore(str(plan.model)))


def _made(session: Session, case: ChainRun, plan: SharedSetup, folder: Path) -> None:
    """Take the stream and ask; write the costs last, when everything else is there."""
    outside = Outside(session, plan.survey.chat)
    base = BaseAnswers(outside, plan.cache)
    facts, around = _asked(base, plan)
    before = base.answers(asked(around))
    if WITH_STATISTICS & set(case.chain):
        own_text.collect(outside, plan.cache, default_blocks(session.edited.anatomy.block_count))
    forget_peak()
    corrections = [correction(fact, chat=plan.survey.chat) for fact in facts]
    _apply(session, case, corrections, folder / STREAM)
    peak = memory_mb("VmHWM")
    after = outside.answers(asked(around))
    comparisons = [
        AnswerComparison(
            question,
            _answer(outside, before[key]),
            _answer(outside, after[key]),
            _record(outside, question),
            outside.agreement(question.prompt, before[key])
            if question.kind == CONTINUATION
            else None,
        )
        for question, key in zip(around, asked(around), strict=True)
    ]
    tables.write_whole(folder / ANSWERS, [comparison.to_json() for comparison in comparisons])
    tables.write_whole(folder / COSTS, {**_costs(session), "peak_mb": peak})


def _asked(
    base: BaseAnswers, plan: SharedSetup
) -> tuple[list[CounterFactRecord], list[StreamQuestion]]:
    """Return the corrections that the base needs, and all questions around them."""
    every = load_facts(plan.data)
    facts = wrong_facts(base, shuffled(every, plan.survey.seed), plan.edits)
    return facts, plan.survey.questions(facts, every, plan.data)


def _apply(
    session: Session, case: ChainRun, corrections: Sequence[Mapping[str, Any]], stream: Path
) -> None:
    """Apply the stream from its beginning, or from the place that the store has reached."""
    if not stream.exists():
        lines = [json.dumps(correction) + "\n" for correction in corrections]
        stream.write_text("".join(lines), encoding="utf-8")
    own = session.settings().editors
    names = {*own, *case.settings}
    editors = {name: {**own.get(name, {}), **case.settings.get(name, {})} for name in names}
    settings = session.settings(chain=case.chain, batch_size=case.batch_size, editors=editors)
    for step in session.steps(open_stream(str(stream)), settings):
        outcomes = ", ".join(f"{o.outcome} {o.editor or ''}".strip() for o in step.outcomes[:3])
        tables.note(f"step {step.revision.seq}: {outcomes}, {step.edit_s:.1f} s")


def _answer(outside: Outside, tokens: tuple[int, ...]) -> WrittenAnswer:
    return WrittenAnswer(tokens, outside.text(tokens), outside.text(tokens[:START_TOKENS]))


def _record(outside: Outside, question: StreamQuestion) -> str | None:
    """Return the prompt of the record to which the memory routes a question, or None."""
    route = outside.session.route(outside.question(question.prompt))
    return None if route is None else str(route.record.prompt)


def _costs(session: Session) -> dict[str, Any]:
    """Return the seconds and outcomes from the journal, and cedit's rates behind the last step."""
    ledgers = list(_ledgers(session))
    attempts = session.run_state.retention.attempts
    later = ledgers[1:] or ledgers
    return {
        "attempted": attempts.total,
        "applied": attempts.right,
        "records": len(session.edited.memory),
        "first_s": ledgers[0]["edit_s"],
        "edit_s": fmean(ledger["edit_s"] for ledger in later),
        "recheck_s": fmean(ledger["recheck_s"] for ledger in later),
        "rates": ledgers[-1]["rates"],
    }


def _ledgers(session: Session) -> Iterator[Mapping[str, Any]]:
    """Yield the records of the steps, in their order."""
    for revision in session.store.lineage("head"):
        ledger = session.store.ledger(revision.seq)
        if revision.operation == "edit" and ledger is not None:
            yield ledger
