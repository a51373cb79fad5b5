"""The disputed question, measured: does a fact's trace tell the block where an edit works best?

    python -m benchmarks.trace_and_edit [--store DIR | --model DIR] [--file FACTS] [--facts 16]
        [--blocks 0,1,…] [--editors memit,tpatcher] [--draws 10] [--threads 1]
        [--plots FOLDER] [--json OUT]

Each fact that the base knows is traced on the base, and then corrected alone at one block after
another: by MEMIT at the subject's last token, and by T-Patcher's gates that read and write at that
block's FFN. An edit is measured whether it arrives or not: efficacy (its prompt), paraphrase (its
held-out wordings) and specificity (its locality probes, answered as before: the base's first three
tokens). Budgets are off.

The tables have the means by block, and Spearman's rank correlation of indirect effects with each
outcome: over the blocks' means, over all pairs of fact and block, and over these pairs once the
mean of each block is taken away, which tells one fact from another at the same block.

A large model takes a while: give it few facts (`--facts 6`), some blocks, and a store that has
key statistics (`--store`).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks import tables
from benchmarks.capacity import requests_of_atlas
from benchmarks.plots import save
from benchmarks.tables import TextColumn
from continual.analysis.tracing import FactTrace, Tracer, TracingConfig
from continual.analysis.tracing.averages import group_effects
from continual.analysis.tracing.modules import ATTENTION, FFN, STATE
from continual.analysis.tracing.results import END, LAST, TRACED
from continual.analysis.tracing.sets import TraceCache, read_set, traces_of
from continual.calibration.facts import CalibrationFact, Sample
from continual.calibration.trials import TrialRunner
from continual.choices import EDITORS
from continual.effects.places import GatePlace
from continual.embedded import ATLAS
from continual.grids import TriedSettings
from continual.new_store import NewStore, init
from continual.prompts import Prompt
from continual.recheck.encoded_requests import EncodedRequest, encode
from continual.recheck.general_rows import GeneralRows
from continual.requests import Request
from continual.session import Session, open_session
from continual.streams import open_stream
from continual.tasks import Encoding
from continual.watch.neighbours import Neighbourhood
from continual.watch.passages import Passage
from continual.watch.writing import continued

ANSWER_TOKENS = 3  # of the base's answer to a locality probe
OUTCOMES = ("efficacy", "paraphrase", "specificity")
EVIDENCE = {"efficacy": "arrives", "paraphrase": "generalises", "specificity": "others"}
EFFECTS = {
    "FFN, subject": (FFN, LAST),
    "state, subject": (STATE, LAST),
    "state, end": (STATE, END),
    "attention, end": (ATTENTION, END),
}
"""The indirect effects that are held against outcomes: a kind at a group of tokens."""


@dataclass(frozen=True)
class EditedFact:
    """One fact edited at one block: its indirect effects there, and the edit's outcomes."""

    editor: str
    block: int
    prompt: str
    effects: dict[str, float]
    outcomes: dict[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """Return the pair as JSON."""
        return {
            "editor": self.editor,
            "block": self.block,
            "prompt": self.prompt,
            **self.effects,
            **self.outcomes,
        }


def settings_at(editor: str, block: int) -> TriedSettings:
    """Return the settings with which an editor writes at one block alone."""
    if editor == "tpatcher":
        return {"asks_subject": False, **GatePlace.at(block).to_json()}
    return {"blocks": [block], "place": "subject", "require_arrival": False}


def answered_by_base(session: Session, prompts: Sequence[Prompt]) -> Iterator[Encoding]:
    """Yield each prompt with the first words that the model, at its base, answers it with."""
    questions = [session.task.question(prompt).ids for prompt in prompts]
    answers = continued(session.edited, questions, ANSWER_TOKENS)
    for question, answer in zip(questions, answers, strict=True):
        yield Passage((*question, *answer[:-1]), len(question) - 1, answer).encoding()


def edited(
    session: Session, editor: str, block: int, encoded: EncodedRequest, trace: FactTrace
) -> EditedFact:
    """Edit one fact at one block, measure, and take the edit off."""
    task, request = session.task, encoded.request
    wordings = request.held_out_rephrases or request.rephrases
    sample = Sample(
        (CalibrationFact(encoded, tuple(task.encode(w, request.target_new) for w in wordings)),),
        GeneralRows.at(session.store, session.site, session.store.lineage("head")).text.memory,
        (),
        tuple(answered_by_base(session, [probe.prompt for probe in request.locality])),
        "the benchmark",
        lambda requests: [Neighbourhood() for _ in requests],
    )
    load = EDITORS[editor].load_grid()
    assert load is not None
    grid = replace(load(session.site), measured=("arrives", "generalises", "others"))
    runner = TrialRunner(editor, grid, session.site, sample, session.statistics, seed=0)
    evidence = runner.run(settings_at(editor, block))
    effects = {
        name: group_effects(trace, kind, trace.groups()[group])[block]
        for name, (kind, group) in EFFECTS.items()
        if trace.map(kind) is not None and trace.groups()[group]
    }
    outcomes = {name: getattr(evidence, column) for name, column in EVIDENCE.items()}
    return EditedFact(editor, block, str(request.prompt), effects, outcomes)


def known_facts(
    session: Session, requests: Sequence[Request], count: int, config: TracingConfig
) -> tuple[list[tuple[EncodedRequest, FactTrace]], float]:
    """Trace the facts behind some corrections on the base; return those that it knows and loses by
    the noise, and σ."""
    tracer = Tracer(session.edited, session.task, config)
    facts = read_set(tracer, [r for r in requests if r.target_old and r.locality])
    sigma = tracer.deviation(facts.token_ids)
    cache = TraceCache(session.store, tracer, sigma)
    pairs = zip(facts.requests, traces_of(cache, facts.requests), strict=False)
    known = (
        (encode(request, session.task), trace)
        for request, trace in pairs
        if trace.outcome == TRACED and trace.answer == request.target_old
    )
    return list(islice(known, count)), sigma


# -- ranks


def ranked(numbers: Sequence[float]) -> list[float]:
    """Return the rank of each number; equal numbers share the mean of their ranks."""
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    ranks = [0.0] * len(numbers)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and numbers[order[stop]] == numbers[order[start]]:
            stop += 1
        for place in order[start:stop]:
            ranks[place] = (start + stop - 1) / 2
        start = stop
    return ranks


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return Spearman's rank correlation; None if one side never changes, or for two pairs."""
    if len(pairs) < 3:
        return None
    first, second = (ranked(side) for side in zip(*pairs, strict=True))
    mean = (len(pairs) - 1) / 2
    products = sum((a - mean) * (b - mean) for a, b in zip(first, second, strict=True))
    spreads = [sum((rank - mean) ** 2 for rank in side) for side in (first, second)]
    if not all(spreads):
        return None
    return products / math.sqrt(spreads[0] * spreads[1])


def correlations(rows: Sequence[EditedFact], editor: str) -> Iterator[dict[str, Any]]:
    """Yield the rank correlations of an editor's outcomes with each indirect effect."""
    own = [row for row in rows if row.editor == editor]
    for outcome in OUTCOMES:
        for effect in EFFECTS:
            pairs = [
                (row.block, row.effects[effect], float(row.outcomes[outcome] or 0.0))
                for row in own
                if effect in row.effects and row.outcomes[outcome] is not None
            ]
            if pairs:
                yield {"editor": editor, "outcome": outcome, "effect": effect, **_three(pairs)}


def _three(pairs: Sequence[tuple[int, float, float]]) -> dict[str, Any]:
    """Return the correlation over the blocks' means, over all pairs, and within the blocks."""
    blocks = sorted({block for block, _, _ in pairs})
    means = {
        block: tuple(fmean(p[side] for p in pairs if p[0] == block) for side in (1, 2))
        for block in blocks
    }
    return {
        "blocks": rank_correlation([(means[b][0], means[b][1]) for b in blocks]),
        "pairs": rank_correlation([(x, y) for _, x, y in pairs]),
        "within": rank_correlation([(x - means[b][0], y - means[b][1]) for b, x, y in pairs]),
        "count": len(pairs),
    }


# -- the tables and the scatter

BLOCK_COLUMNS = (
    TextColumn("editor", "editor"),
    TextColumn("block", "block", "d"),
    *(TextColumn(f"IE {name}", name, ".3f") for name in EFFECTS),
    *(TextColumn(name, name, ".3f") for name in OUTCOMES),
    TextColumn("facts", "facts", "d"),
)
RANK_COLUMNS = (
    TextColumn("editor", "editor"),
    TextColumn("outcome", "outcome"),
    TextColumn("indirect effect", "effect"),
    TextColumn("ρ over blocks", "blocks", ".2f"),
    TextColumn("ρ over pairs", "pairs", ".2f"),
    TextColumn("ρ within blocks", "within", ".2f"),
    TextColumn("pairs", "count", "d"),
)


def by_block(rows: Sequence[EditedFact]) -> Iterator[dict[str, Any]]:
    """Yield the means of each editor at each block."""
    for editor, block in dict.fromkeys((row.editor, row.block) for row in rows):
        own = [row for row in rows if (row.editor, row.block) == (editor, block)]
        record: dict[str, Any] = {"editor": editor, "block": block, "facts": len(own)}
        for name in (*EFFECTS, *OUTCOMES):
            values = [v for row in own if (v := row.to_json().get(name)) is not None]
            record[name] = fmean(values) if values else None
        yield record


def _mean(rows: Sequence[EditedFact], outcome: str) -> float | None:
    values = [v for row in rows if (v := row.outcomes[outcome]) is not None]
    return fmean(values) if values else None


def scatter(rows: Sequence[EditedFact], ranks: Sequence[dict[str, Any]]) -> Any:
    """Draw each outcome over the FFN's indirect effect at the subject: small points for facts, a
    large one for the mean of each block."""
    from matplotlib.figure import Figure

    editors = list(dict.fromkeys(row.editor for row in rows))
    figure = Figure(figsize=(10.5, 3.1 * len(editors) + 0.3), layout="constrained")
    panels = figure.subplots(len(editors), len(OUTCOMES), squeeze=False, sharex=True)
    blocks = sorted({row.block for row in rows})
    effect = next(iter(EFFECTS))
    for editor, line in zip(editors, panels, strict=True):
        for outcome, panel in zip(OUTCOMES, line, strict=True):
            _scattered(panel, [row for row in rows if row.editor == editor], outcome, blocks)
            rank = next(
                (r for r in ranks if _is_of(r, editor, outcome, effect)),
                {"blocks": None, "pairs": None},
            )
            texts = [
                f"{name} {'–' if rank[key] is None else format(rank[key], '.2f')}"
                for name, key in (("ρ over blocks", "blocks"), ("over pairs", "pairs"))
            ]
            panel.set_title(f"{editor}: {outcome}\n{', '.join(texts)}", fontsize=9)
    for panel in panels[-1]:
        panel.set_xlabel("indirect effect of the FFN at the subject's last token", fontsize=8)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(12, len(labels)), frameon=False
    )
    return figure


def _is_of(record: dict[str, Any], editor: str, outcome: str, effect: str) -> bool:
    return (record["editor"], record["outcome"], record["effect"]) == (editor, outcome, effect)


def _scattered(panel: Any, rows: Sequence[EditedFact], outcome: str, blocks: Sequence[int]) -> None:
    from matplotlib import colormaps

    effect = next(iter(EFFECTS))
    for number, block in enumerate(blocks):
        colour = colormaps["viridis"](0.92 * number / max(1, len(blocks) - 1))
        points = [
            (row.effects[effect], row.outcomes[outcome])
            for row in rows
            if row.block == block and effect in row.effects and row.outcomes[outcome] is not None
        ]
        if points:
            xs, ys = zip(*points, strict=True)
            panel.scatter(xs, ys, s=14, color=colour, alpha=0.45, linewidths=0)
            panel.scatter(
                fmean(xs), fmean(ys), s=90, color=colour, edgecolors="white", label=f"block {block}"
            )
    panel.set_ylim(-0.06, 1.06)
    panel.grid(alpha=0.25)
    panel.tick_params(labelsize=8)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


# -- the run


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[Session]:
    """Open the store that is asked for at its base, or make one of the model."""
    if options.store is not None:
        with open_session(options.store, at="base") as session:
            yield session
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        init(Path(folder) / "store", NewStore(options.model)) as session,
    ):
        yield session


def main() -> None:
    """Run the benchmark by the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path)
    parser.add_argument("--model", default=ATLAS.name)
    parser.add_argument("--file", type=Path, help="corrections with target_old and locality")
    parser.add_argument("--facts", type=int, default=16)
    parser.add_argument("--blocks", help="numbers with commas; all of them unless given")
    parser.add_argument("--editors", default="memit,tpatcher")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plots", type=Path, metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    requests = (
        [r for item in open_stream(str(options.file)) for r in item.requests]
        if options.file
        else requests_of_atlas()
    )
    with opened(options) as session:
        config = TracingConfig(draws=options.draws)
        facts, sigma = known_facts(session, requests, options.facts, config)
        count = session.edited.anatomy.block_count
        blocks = [int(b) for b in options.blocks.split(",")] if options.blocks else range(count)
        rows = []
        for editor in options.editors.split(","):
            for block in blocks:
                at_block = [edited(session, editor, block, *fact) for fact in facts]
                rows += at_block
                means = ((name, _mean(at_block, name)) for name in OUTCOMES)
                told = ", ".join(f"{name} {mean:.2f}" for name, mean in means if mean is not None)
                tables.note(f"{editor}, block {block}: {told}")
    ranks = [rank for editor in options.editors.split(",") for rank in correlations(rows, editor)]
    tables.show(
        f"{len(facts)} facts, σ {sigma:.3g}: means by block", BLOCK_COLUMNS, [*by_block(rows)]
    )
    tables.show("Spearman's ρ of indirect effect and outcome", RANK_COLUMNS, ranks)
    if options.plots is not None:
        save(scatter(rows, ranks), options.plots, "trace_and_edit")
    record = {"sigma": sigma, "ranks": ranks, "pairs": [row.to_json() for row in rows]}
    tables.write_json(options.json, "trace_and_edit", record)


if __name__ == "__main__":
    main()
