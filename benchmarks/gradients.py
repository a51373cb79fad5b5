"""Measures editors by gradients on the atlas, one correction after another.

    python -m benchmarks.gradients [--rows NAME,…] [--edits N] [--skip N] [--every N]
        [--set KEY=VALUE …] [--network METHOD=FILE …] [--single] [--watched] [--json OUT]

A row is an editor with some of its settings: see `ROWS`. Rows of a trained editor need its network,
as `cedit train` leaves it. `--set` adds settings to all rows, in TOML, such as `margin=2.0`. With
`--single` each correction is made on the base, and the rates are means over the corrections.
`--skip` leaves out the first corrections, so that settings are chosen on others than those they are
measured on. Without `--watched` nothing is watched, so that a row shows what the method itself
does; with it an edit that changes general text or neighbours is made smaller, or refused. SR counts
refused edits as wrong.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.tables import TextColumn
from continual.embedded import ATLAS
from continual.gradients.trained import NetworkFile
from continual.new_store import NewStore, init
from continual.recheck.retention import APPLIED, ATTEMPTED
from continual.requests import Request
from continual.session import Session
from continual.step.pipeline import Step
from continual.step.settings import ApplySettings, Recheck
from continual.streams import open_stream
from continual.watch.config import UNWATCHED

PUBLISHED: Mapping[str, Any] = {
    "blocks": [2],
    "sides": "both",
    "moment_weight": 0.0,
    "memory": False,
    "scale_max": 1,
}
"""The system as published, of a block in the middle: no search, nothing of the past or the base."""
ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ultraedit": ("ultraedit", {}),
    "ultraedit-forgets": ("ultraedit", {"moment_weight": 0.0, "memory": False}),
    "ultraedit-published": ("ultraedit", {**PUBLISHED, "warmup": 0, "rate": 1e-6}),
    "ultraedit-published-longer": ("ultraedit", {**PUBLISHED, "scale_max": 2**16}),
    "mend": ("mend", {}),
    "mend-published": ("mend", {"solved": False, "scale_max": 1}),
    "malmen": ("malmen", {}),
    "malmen-published": ("malmen", {"moment_weight": 0.0, "memory": False, "scale_max": 1}),
    "ke": ("ke", {}),
    "ke-published": ("ke", {"solved": False, "scale_max": 1}),
    "ft-l": ("ft-l", {}),
    "tpatcher": ("tpatcher", {}),
}
"""Editors with settings, by the name of their row."""
RATES = ("SR", "GR", "ER", "TrainR", "TestR", "Locality", "Watch")
NEVER = 1_000_000  # steps
COLUMNS = (
    TextColumn("row", "row", ""),
    TextColumn("edits", "edits", ",d"),
    *(TextColumn(name, name, ".3f") for name in RATES),
    TextColumn("edit, s", "edit_s", ".2f"),
    TextColumn("edit, bytes", "patch_bytes", ",.0f"),
)


def run(name: str, options: argparse.Namespace, more: Mapping[str, Any]) -> Iterator[Any]:
    """Yield a row of the table after each `every` attempted edits, in a store of its own."""
    editor, table = ROWS[name]
    table = {**table, **options.networks.get(editor, {}), **more}
    watch = None if options.watched else UNWATCHED
    with (
        tempfile.TemporaryDirectory() as folder,
        init(Path(folder) / "store", NewStore(watch=watch)) as session,
    ):
        recheck = Recheck(every=1 if options.single else NEVER)
        settings = session.settings(chain=(editor,), editors={editor: table}, recheck=recheck)
        items = itertools.islice(open_stream(str(ATLAS.corrections)), options.skip, None)
        if options.single:
            yield _mean(name, list(_singles(session, _requests(items), settings, options.edits)))
            return
        steps = session.apply_requests(_requests(items), settings)
        attempts = (s for s in steps if s.outcomes and s.outcomes[0].outcome in ATTEMPTED)
        for count in range(options.every, options.edits + 1, options.every):
            yield _row(session, name, count, list(itertools.islice(attempts, options.every)))


def _singles(
    session: Session, requests: Iterator[Request], settings: ApplySettings, count: int
) -> Iterator[Step]:
    """Yield the steps of the first `count` attempted edits, each made on the base."""
    while count:
        (step,) = session.apply_requests([next(requests)], settings)
        session.rollback("base")
        if step.outcomes[0].outcome in ATTEMPTED:
            count -= 1
            yield step


def _mean(name: str, steps: Sequence[Step]) -> dict[str, Any]:
    """Return the row of single edits."""
    rates = [step.measured.rates.to_json() for step in steps if step.measured is not None]
    known = {rate: [r[rate] for r in rates if r.get(rate) is not None] for rate in RATES}
    return {
        "row": name,
        "edits": len(steps),
        **{rate: sum(values) / len(values) if values else None for rate, values in known.items()},
        "edit_s": sum(step.edit_s for step in steps) / len(steps),
        "patch_bytes": sum(step.patch_bytes for step in steps) / len(steps),
    }


def _requests(items: Iterator[Any]) -> Iterator[Request]:
    for item in items:
        yield from item.requests


def _row(session: Session, name: str, count: int, steps: Sequence[Step]) -> dict[str, Any]:
    session.settle()
    record = session.store.ledger(session.store.head.seq)
    assert record is not None
    sizes = [step.patch_bytes for step in steps if step.outcomes[0].outcome == APPLIED]
    return {
        "row": name,
        "edits": count,
        **{rate: record["rates"].get(rate) for rate in RATES},
        "edit_s": sum(step.edit_s for step in steps) / len(steps),
        "patch_bytes": sum(sizes) / len(sizes) if sizes else None,
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--edits", type=int, default=50)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--set", dest="more", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--network", action="append", default=[], metavar="METHOD=FILE")
    parser.add_argument("--single", action="store_true")
    parser.add_argument("--watched", action="store_true")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    more = tomllib.loads("\n".join(options.more))
    options.networks = {
        method: _network(Path(path))
        for method, _, path in (text.partition("=") for text in options.network)
    }
    rows: list[dict[str, Any]] = []
    for name in options.rows.split(","):
        for row in run(name, options, more):
            rows.append(row)
            tables.note(f"{name} {more or ''}: {row['edits']} edits, {_told(row)}")
            tables.write_json(options.json, "gradients", {"rows": rows})  # a run may break off
    tables.show("Editors by gradients on the atlas", COLUMNS, rows)


def _network(path: Path) -> dict[str, str]:
    """Return the lines of an editor's table that name a network."""
    file = NetworkFile.of(path.absolute())
    return {"network": str(file.path), "network_digest": file.digest}


def _told(row: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {row[name]:.3f}" for name in RATES if row[name] is not None)


if __name__ == "__main__":
    main()
