"""Causal tracing here against the naive form: every token, block and kind a full forward pass.

    python -m benchmarks.tracing [--model DIR] [--file FACTS] [--facts 3] [--share 1] [--draws 10]
                                 [--window N] [--threads 1] [--json OUT]

The naive form is the published code's: one pass of 1 + draws rows over the whole prompt for each
place, with hooks that put one clean output back, and logits at every token. Both trace the same
facts with the same noise in one process, and the table has the processor seconds of each, their
ratio, and the largest difference of a probability. With `--share` below 1 the naive form runs such
a share of the places, drawn at random, and its seconds are scaled up; the difference is over those.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import tables
from benchmarks.capacity import requests_of_atlas
from benchmarks.tables import TextColumn
from continual import hooks
from continual.analysis.tracing import FactTrace, Tracer, TracingConfig
from continual.analysis.tracing.config import window_around
from continual.analysis.tracing.facts import TracedFact
from continual.analysis.tracing.modules import STATE
from continual.analysis.tracing.noise import drawn
from continual.analysis.tracing.sets import read_set
from continual.base import load_base
from continual.embedded import ATLAS
from continual.model import EditedModel
from continual.passes.partial import logits_of
from continual.requests import Request
from continual.streams import open_stream
from continual.tasks import make_task

COLUMNS = (
    TextColumn("fact", "prompt"),
    TextColumn("tokens", "tokens", "d"),
    TextColumn("places", "places", "d"),
    TextColumn("naive, CPU s", "naive_s", ".2f"),
    TextColumn("here, CPU s", "here_s", ".2f"),
    TextColumn("ratio", "ratio", ".1f"),
    TextColumn("largest difference", "difference", ".1e"),
)
Place = tuple[str, int, int]
"""Kind, token, block."""


class NaiveTrace:
    """Full passes: row 0 is clean, the others have noise, and one place of theirs is restored."""

    def __init__(self, tracer: Tracer, fact: TracedFact, noise: Tensor) -> None:
        self._tracer, self._fact, self._noise = tracer, fact, noise

    @torch.no_grad()
    def probability(self, place: Place) -> float:
        """Return the mean probability of the answer's first token with one place restored."""
        kind, token, block = place
        model, sequence = self._tracer.model, self._fact.sequence
        blocks = range(block, block + 1)
        if kind != STATE:
            blocks = range(*window_around(block, self._tracer.window, model.block_count))
        ids = torch.tensor([sequence.ids] * (1 + len(self._noise)), device=model.device)

        def restored(hidden: Tensor) -> Tensor:
            hidden = hidden.clone()
            hidden[1:, token] = hidden[0, token]
            return hidden

        with ExitStack() as stack:
            stack.enter_context(hooks.altered(model.embedding, self._noisy))
            for index in blocks:
                stack.enter_context(hooks.altered(model.modules[kind][index], restored))
            logits = logits_of(model.model, {"input_ids": ids})
        shares = logits[1:, sequence.positions[0]].double().softmax(-1)
        return float(shares[:, sequence.targets[0]].mean())

    def _noisy(self, embedded: Tensor) -> Tensor:
        noisy = embedded.clone()
        noisy[1:, list(self._fact.sequence.subject)] += self._noise.to(noisy)
        return noisy


def measured(tracer: Tracer, fact: TracedFact, sigma: float, share: float) -> dict[str, Any]:
    """Trace a fact in both ways; return the table's row."""
    began = time.process_time()
    trace = tracer.trace(fact, sigma)
    here_s = time.process_time() - began
    places: list[Place] = [
        (kind, token, block)
        for kind in tracer.kinds
        for token in range(fact.size)
        for block in range(tracer.model.block_count)
    ]
    count = max(1, round(share * len(places)))
    sample = places if share >= 1 else random.Random(0).sample(places, count)
    config = tracer.config
    noise = drawn(tracer.model, fact, config.draws, config.seed, config.noise * sigma)
    naive = NaiveTrace(tracer, fact, noise)
    began = time.process_time()
    probabilities = [naive.probability(place) for place in sample]
    naive_s = (time.process_time() - began) * len(places) / len(sample)
    return {
        "prompt": str(fact.prompt),
        "tokens": fact.size,
        "places": len(places),
        "sampled": len(sample),
        "naive_s": naive_s,
        "here_s": here_s,
        "ratio": naive_s / here_s,
        "difference": _difference(trace, sample, probabilities),
    }


def _difference(trace: FactTrace, places: Sequence[Place], naive: Sequence[float]) -> float:
    """Return the largest difference of a probability between the two ways."""
    return max(
        abs(found.at(token, block) - probability)
        for (kind, token, block), probability in zip(places, naive, strict=True)
        if (found := trace.map(kind)) is not None
    )


def facts_of(tracer: Tracer, requests: Sequence[Request]) -> Iterator[TracedFact]:
    """Yield the facts that the model answers with one token, for its own next token."""
    for request in requests:
        fact = tracer.fact(request.prompt, request.subject or "")
        if fact.answer and str(request.target_old or request.target_new).startswith(fact.answer):
            yield fact


def main() -> None:
    """Run the benchmark by the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=ATLAS.name)
    parser.add_argument("--file", type=Path, help="facts in any format of a stream")
    parser.add_argument("--facts", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the places, run naively")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--window", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = load_base(options.model)
    requests = [
        request
        for item in (open_stream(str(options.file)) if options.file else ())
        for request in item.requests
    ] or requests_of_atlas()
    task = make_task(base, ATLAS.task if options.model == ATLAS.name else {"joining": "in-place"})
    config = TracingConfig(draws=options.draws, window=options.window)
    with EditedModel(base) as edited:
        tracer = Tracer(edited, task, config)
        found = read_set(tracer, requests)
        sigma = tracer.deviation(found.token_ids)
        rows = []
        for fact in islice(facts_of(tracer, found.requests), options.facts):
            rows.append(measured(tracer, fact, sigma, options.share))
            tables.note(f"{rows[-1]['prompt']}: {rows[-1]['ratio']:.1f}")
    ratio = sum(row["naive_s"] for row in rows) / sum(row["here_s"] for row in rows)
    tables.show(f"Causal tracing, {tracer.way}, against full passes", COLUMNS, rows)
    least = min(row["ratio"] for row in rows)
    middle = statistics.median(row["ratio"] for row in rows)
    print(f"ratio {ratio:.1f} in all, median {middle:.1f}, least {least:.1f}")
    tables.write_json(options.json, "tracing", {"way": tracer.way, "ratio": ratio, "facts": rows})


if __name__ == "__main__":
    main()
