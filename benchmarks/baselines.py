"""Measures the fine-tuning baselines on the atlas, one correction after another.

    python -m benchmarks.baselines [--editors ft-last,ft-all] [--edits N] [--every N] [--json OUT]

Measures all earlier edits and all probes after every 50 edits. The seconds of an edit cover its
plan, training, proof and commit, but no measuring. Seconds and patch bytes are means over the edits
since the row before.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.tables import TextColumn
from continual.embedded import ATLAS
from continual.new_store import NewStore, init
from continual.recheck.retention import APPLIED, ATTEMPTED
from continual.session import Session
from continual.step.pipeline import Step
from continual.step.settings import Recheck
from continual.streams import open_stream
from continual.watch.config import UNWATCHED

EDITORS = ("ft-last", "ft-all", "ft-last-kl", "ft-all-kl", "ft-l")
RATES = ("SR", "GR", "ER", "TrainR", "TestR")
NEVER = 1_000_000  # steps
COLUMNS = (
    TextColumn("editor", "editor", ""),
    TextColumn("edits", "edits", ",d"),
    *(TextColumn(name, name, ".3f") for name in RATES),
    TextColumn("steps", "steps", ".1f"),
    TextColumn("edit, s", "edit_s", ".2f"),
    TextColumn("edit, bytes", "patch_bytes", ",.0f"),
)


def run(editor: str, edits: int, every: int) -> Iterator[dict[str, Any]]:
    """Yield a row of the table after each `every` attempted edits, in a store of its own."""
    with (
        tempfile.TemporaryDirectory() as folder,
        init(Path(folder) / "store", NewStore(watch=UNWATCHED)) as session,
    ):
        for count in range(every, edits + 1, every):
            yield _row(session, editor, count, _attempts(session, editor, every))


def _attempts(session: Session, editor: str, count: int) -> list[Step]:
    """Apply the stream until `count` more edits are attempted; return their steps, not measured."""
    settings = session.settings(chain=(editor,), recheck=Recheck(every=NEVER))
    made: list[Step] = []
    for step in session.steps(open_stream(str(ATLAS.corrections)), settings):
        if step.outcomes and step.outcomes[0].outcome in ATTEMPTED:
            made.append(step)
        if len(made) == count:
            break
    return made


def _row(session: Session, editor: str, count: int, steps: Sequence[Step]) -> dict[str, Any]:
    session.settle()
    record = session.store.ledger(session.store.head.seq)
    assert record is not None
    applied = [step for step in steps if step.outcomes[0].outcome == APPLIED]
    rounds = [int(step.outcomes[0].notes["steps"]) for step in applied]
    sizes = [step.patch_bytes for step in applied]
    return {
        "editor": editor,
        "edits": count,
        **{name: record["rates"][name] for name in RATES},
        "steps": sum(rounds) / len(rounds) if rounds else None,
        "edit_s": sum(step.edit_s for step in steps) / len(steps),
        "patch_bytes": sum(sizes) / len(sizes) if sizes else None,
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--editors", default=",".join(EDITORS))
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for editor in options.editors.split(","):
        for row in run(editor, options.edits, options.every):
            rows.append(row)
            tables.note(f"{editor}: {row['edits']} edits, ER {row['ER']:.3f}")
            tables.write_json(options.json, "baselines", {"rows": rows})  # a run may break off
    tables.show("Fine-tuning on the atlas", COLUMNS, rows)


if __name__ == "__main__":
    main()
