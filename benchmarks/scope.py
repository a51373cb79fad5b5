"""Measures how precisely memory finds the right record, or none, as stores grow.

    python -m benchmarks.scope [--sizes 100,1000,10000] [--kinds zsRE,CounterFact,atlas]
                               [--inputs 2000] [--plots DIR] [--json OUT]

The stores hold requests on which the embedded scope was not trained. A rephrase is in scope, and is
right if its own record wins it; a wrong record is a false positive and a miss, no record is a miss.
A locality prompt is out of scope, and a false positive if any record wins it; it is left out if it
is word for word a prompt or rephrase in the store. In stores with more requests than `--inputs`,
only the texts of the first `--inputs` are asked.

Cosine is the nearest record by one threshold, the best for the measured texts themselves; the
trained scope has the threshold that it was saved with.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import plots, tables
from benchmarks.scope_data import kinds
from benchmarks.tables import TextColumn
from continual.effects.records import EmbeddedRecords, Record
from continual.memory.encoder import SentenceEncoder
from continual.memory.inputs import Queries
from continual.memory.scope import Scope, ThresholdScope
from continual.memory.trained import TrainedScope
from continual.requests import Request

SIZES = (100, 1_000, 10_000)
INPUTS = 2_000  # requests whose texts are asked
REMEMBERED = 1_000_000  # texts
BLOCK = 256  # inputs at a time
NONE = -1  # the record of an input out of scope

COLUMNS = (
    TextColumn("requests", "kind"),
    TextColumn("records", "records", ",d"),
    TextColumn("in scope", "in_scope", ",d"),
    TextColumn("out of scope", "out_of_scope", ",d"),
    TextColumn("scope", "editor"),
    TextColumn("threshold", "threshold", ".3f"),
    *(TextColumn(name, name, ".3f") for name in ("precision", "recall", "F1")),
    TextColumn("found among candidates", "found", ".3f"),
)


@dataclass(frozen=True)
class ScopeTexts:
    """Texts, and the record that each is about."""

    texts: list[str]
    records: Tensor  # [q]; NONE for a text out of scope


@dataclass(frozen=True)
class Won:
    """The winner and its score for each input, and whether its own record was a candidate."""

    scores: Tensor  # [q]
    records: Tensor  # [q]
    found: Tensor  # [q] bool

    def at(self, threshold: float, asked: ScopeTexts) -> dict[str, float]:
        """Return precision, recall and F1 at a threshold."""
        said, inside = self.scores >= threshold, asked.records != NONE
        right = int((said & (self.records == asked.records)).sum())
        precision, recall = right / max(1, int(said.sum())), right / max(1, int(inside.sum()))
        f1 = 2 * right / max(1, int(said.sum()) + int(inside.sum()))
        return {"precision": precision, "recall": recall, "F1": f1}


def asked_of(requests: Sequence[Request], inputs: int) -> ScopeTexts:
    """Return rephrases with their records, and locality prompts with none."""
    chosen = requests[:inputs]
    known = {text for request in requests for text in (request.prompt, *_rephrases(request))}
    inside = [(text, place) for place, r in enumerate(chosen) for text in _rephrases(r)]
    outside = [(p.prompt, NONE) for r in chosen for p in r.locality if p.prompt not in known]
    texts, places = zip(*inside, *outside, strict=True)
    return ScopeTexts(list(texts), torch.tensor(places))


def _rephrases(request: Request) -> tuple[str, ...]:
    return (*request.rephrases, *request.held_out_rephrases)


def won(scope: Scope, queries: Queries, records: EmbeddedRecords, asked: ScopeTexts) -> Won:
    """Return the scope's decision on each input."""
    parts = list(_won(scope, queries, records, asked))
    return Won(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _won(
    scope: Scope, queries: Queries, records: EmbeddedRecords, asked: ScopeTexts
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    count = min(scope.candidates, len(records))
    for places in torch.arange(len(queries)).split(BLOCK):
        chosen = queries.chosen(places.tolist())
        nearest = chosen.similarity(records.embeddings).topk(count, 1).indices  # [b, count]
        pairs = [(q, r) for q, row in enumerate(nearest.tolist()) for r in row]
        best = scope.scores(chosen, records, pairs).reshape(nearest.shape).max(1)
        winners = nearest.gather(1, best.indices.unsqueeze(1)).squeeze(1)
        yield best.values, winners, (nearest == asked.records[places].unsqueeze(1)).any(1)


def best_threshold(decided: Won, asked: ScopeTexts) -> float:
    """Return the threshold with the highest F1 on these very texts: one of their scores."""
    order = decided.scores.argsort(descending=True)
    right = (decided.records == asked.records)[order].cumsum(0)
    said = torch.arange(1, len(order) + 1)
    f1 = 2 * right / (said + (asked.records != NONE).sum())
    return float(decided.scores[order[f1.argmax()]])


def measure(
    scope: Scope, requests: Sequence[Request], asked: ScopeTexts, is_tuned: bool
) -> Mapping[str, Any]:
    """Return a row of the table."""
    kept = [Record(r.id, r.prompt, r.target_new, r.subject) for r in requests]
    records = scope.records(kept)
    decided = won(scope, scope.queries(asked.texts), records, asked)
    threshold = best_threshold(decided, asked) if is_tuned else scope.threshold
    inside = asked.records != NONE
    return {
        "records": len(requests),
        "in_scope": int(inside.sum()),
        "out_of_scope": int((~inside).sum()),
        "threshold": threshold,
        **decided.at(threshold, asked),
        "found": float(decided.found[inside].float().mean()),
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), metavar="100,1000,...")
    parser.add_argument("--kinds", default="zsRE,CounterFact,atlas")
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--scope", type=Path, metavar="FILE", help="a trained scope to measure")
    parser.add_argument("--plots", type=Path, metavar="DIR")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    encoder = SentenceEncoder(remembered_max=REMEMBERED)
    trained = (
        TrainedScope.load(options.scope, encoder)
        if options.scope
        else TrainedScope.embedded(encoder)
    )
    scopes = {"cosine": ThresholdScope(encoder), "trained": trained}
    rows = []
    for kind in kinds():
        if kind.name not in options.kinds.split(","):
            continue
        tables.note(f"{kind.name}: {len(kind.learned):,} learned, {len(kind.unseen):,} unseen")
        sizes = {min(int(size), len(kind.unseen)) for size in options.sizes.split(",")}
        for size in sorted(sizes):
            asked = asked_of(kind.unseen[:size], options.inputs)
            for name, scope in scopes.items():
                row = measure(scope, kind.unseen[:size], asked, is_tuned=name == "cosine")
                rows.append({"kind": kind.name, "editor": name, **row})
                tables.note(f"{kind.name} {size:,} {name}: F1 {row['F1']:.3f}")
    tables.show("Scope precision and recall over growing stores", COLUMNS, rows)
    if options.plots:
        draw(rows, options.plots)
    tables.write_json(options.json, "scope", {"rows": rows})


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw F1 over the size of the store, for each kind of request."""
    names = list(dict.fromkeys(row["kind"] for row in rows))
    wide = [{**row, **{kind: _own(row, kind) for kind in names}} for row in rows]
    figure = plots.panels(wide, "records", {name: f"{name}: F1" for name in names}, "records")
    for axes in figure.axes:
        axes.set_xscale("log")
    plots.save(figure, folder, "scope")


def _own(row: Mapping[str, Any], kind: str) -> float | None:
    return row["F1"] if row["kind"] == kind else None


if __name__ == "__main__":
    main()
