"""Measures a pretrained model after a stream of CounterFact's corrections, from outside.

    python -m benchmarks.real_model --model DIR [--edits 100] [--output DIR] [--data DIR]
        [--editors tpatcher,memit,serac,ike,default] [--settings JSON] [--around N] [--openings N]
        [--chat] [--seed N] [--cache DIR] [--threads 1] [--examples N]

Corrections are records that the model does not answer with the target already. An editor is given
the prompt, the target, the subject and the relation: no probes and no rephrases. The base and the
edited model then get the same questions by greedy generation, through the `generate` of the open
session: the corrected prompts, their paraphrases, neighbours (the same relation of another
subject), other questions about the edited subjects, and openings of articles. Questions that ask
for the corrected fact under the number of another relation, such as "X is in" beside "X is located
in", are counted apart: there the answer should change. The last table sets cedit's own metrics
beside the same things seen from outside. `+` joins the editors of a chain, `default` is the chain
of a new store. A finished run is read from --output, an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import tables
from benchmarks.counterfact_model import data_folder, default_cache
from benchmarks.real_model import examples
from benchmarks.real_model.questions import QuestionCounts
from benchmarks.real_model.runs import ChainRun, SharedSetup, run
from benchmarks.tables import TextColumn
from continual.errors import CeditError

EDITORS = "tpatcher,memit,serac,ike,default"
TITLE = "asked by free greedy generation, beside the base's answers"
COLUMNS = (
    TextColumn("editor", "editor"),
    TextColumn("attempted", "attempted", "d"),
    TextColumn("applied", "applied", "d"),
    TextColumn("edits right", "edits_right", ".2f"),
    TextColumn("paraphrases right", "paraphrases_right", ".2f"),
    *(
        TextColumn(heading, f"{kind}_{measure}", ".2f")
        for kind in ("neighbours", "subject", "general")
        for heading, measure in (
            (f"{kind} changed", "changed"),
            ("from the start", "start"),
            ("leaks", "leaks"),
        )
    ),
    TextColumn("the same fact in other words", "same_fact_changed", ".2f"),
    TextColumn("continuation, given", "continuation_given", ".2f"),
    TextColumn("free", "continuation_free", ".2f"),
    TextColumn("fluency", "fluency", ".3f"),
)
COST_COLUMNS = (
    TextColumn("editor", "editor"),
    TextColumn("first edit, s", "first_s", ".1f"),
    TextColumn("an edit, s", "edit_s", ".1f"),
    TextColumn("a re-check, s", "recheck_s", ".2f"),
    TextColumn("peak, MB", "peak_mb", ",.0f"),
)
ROUTING_COLUMNS = (
    TextColumn("editor", "editor"),
    TextColumn("records", "records", "d"),
    TextColumn("paraphrases to their record", "paraphrases_own", ".2f"),
    TextColumn("to another", "paraphrases_other", ".2f"),
    TextColumn("right where to their own", "own_right", ".2f"),
    TextColumn("neighbours routed", "neighbours_routed", ".2f"),
    TextColumn("subject routed", "subject_routed", ".2f"),
    TextColumn("general routed", "general_routed", ".2f"),
)


@dataclass(frozen=True)
class MetricPair:
    """A metric of cedit, and the column that has the same thing seen from outside."""

    metric: str
    key: str
    heading: str
    is_rest: bool = False  # one minus the column

    def outside(self, row: Mapping[str, Any]) -> float | None:
        """Return the value from outside."""
        share: float | None = row[self.key]
        return share if share is None or not self.is_rest else 1 - share


PAIRS = (
    MetricPair("ER_incl", "edits_right", "edits right"),
    MetricPair("GR", "paraphrases_right", "paraphrases right"),
    MetricPair("Neighbours", "neighbours_changed", "neighbours unchanged", is_rest=True),
    MetricPair("Watch", "general_changed", "general unchanged", is_rest=True),
    MetricPair("Continuation", "continuation_given", "continuation, given"),
    MetricPair("Fluency", "fluency", "fluency"),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.real_model", description=(__doc__ or "").splitlines()[0]
    )
    options.add_argument("--model", type=Path, required=True, metavar="DIR")
    options.add_argument("--edits", type=int, default=SharedSetup.edits, metavar="N")
    options.add_argument("--editors", default=EDITORS, metavar="NAME,…")
    options.add_argument("--settings", type=json.loads, default={}, help='{"EDITOR": {…}}, as JSON')
    options.add_argument("--around", type=int, default=QuestionCounts.around, metavar="N")
    options.add_argument("--openings", type=int, default=QuestionCounts.openings, metavar="N")
    options.add_argument("--chat", action="store_true", help="every prompt is a user's turn")
    options.add_argument("--seed", type=int, default=QuestionCounts.seed, metavar="N")
    options.add_argument("--data", type=Path, default=data_folder(), metavar="DIR")
    options.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR")
    options.add_argument("--output", type=Path, default=Path("runs/real-model"), metavar="DIR")
    options.add_argument("--examples", type=int, default=0, metavar="N", help="of each fault")
    options.add_argument("--threads", type=int, default=1, metavar="N")
    return options


def measure(options: argparse.Namespace) -> None:
    """Make all runs and print their tables. Raises CeditError."""
    plan = SharedSetup(
        options.model,
        options.data,
        options.cache,
        options.output,
        options.edits,
        QuestionCounts(options.around, options.openings, options.seed, options.chat),
    )
    rows: list[dict[str, Any]] = []
    routings: list[dict[str, Any]] = []
    for editors in filter(None, options.editors.split(",")):
        case = ChainRun(editors.replace("+", ","), options.settings)
        finished = run(case, plan)
        rows.append(finished.row(case.name))
        if (routing := finished.routing(case.name)) is not None:
            routings.append(routing)
        examples.show(case.name, finished, options.examples)
    show(rows, routings)
    tables.write_json(
        options.output / "table.json", "real_model", {"rows": rows, "routing": routings}
    )


def show(rows: Sequence[Mapping[str, Any]], routings: Sequence[Mapping[str, Any]]) -> None:
    """Print all tables."""
    tables.show(f"{rows[0]['attempted']} corrections, {TITLE}", COLUMNS, rows)
    tables.show("Costs", COST_COLUMNS, rows)
    if routings:
        tables.show("Questions that the memory answers", ROUTING_COLUMNS, routings)
    rates = list(dict.fromkeys(name for row in rows for name in row["rates"]))
    own = [{"editor": row["editor"], **row["rates"]} for row in rows]
    columns = [TextColumn("editor", "editor"), *(TextColumn(name, name, ".3f") for name in rates)]
    tables.show("cedit's own metrics behind the last step", columns, own)
    tables.show("cedit's own metrics and the same from outside", *beside(rows))


def beside(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[Sequence[TextColumn], Sequence[Mapping[str, Any]]]:
    """Return columns and rows of the metrics that are measured from both sides."""
    pairs = [p for p in PAIRS if any(row["rates"].get(p.metric) is not None for row in rows)]
    columns = [TextColumn("editor", "editor")]
    for pair in pairs:
        columns += [
            TextColumn(pair.metric, pair.metric, ".3f"),
            TextColumn(pair.heading, f"outside {pair.metric}", ".3f"),
        ]
    compared = [
        {
            "editor": row["editor"],
            **{pair.metric: row["rates"].get(pair.metric) for pair in pairs},
            **{f"outside {pair.metric}": pair.outside(row) for pair in pairs},
        }
        for row in rows
    ]
    return columns, compared


def main() -> int:
    """Run the benchmark from the command line. A failure is one line on standard error."""
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    try:
        measure(options)
    except CeditError as error:
        print(f"real_model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
