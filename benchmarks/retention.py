"""Measures how MEMIT's edits in batches last on the atlas, and how consolidating changes them.

    python -m benchmarks.retention [--edits 100] [--batch 50] [--skip 0] [--editor memit]
                                   [--rows default,past,lead,pin,general,heavy,all]
                                   [--drift 0.2] [--json OUT]

Each row makes the same edits in batches, with other settings, from base on: `past` has the keys of
earlier batches in the system, `lead` ends searches four steps after the target leads, `pin` pins
the lengths of values, `general` and `heavy` hold general text at 6 and 20 times the weight of C₀,
`all` does the first three. `--drift` is the budget of all rows. Behind it all batches are made one
by `cedit consolidate`, and everything is measured again. Rates are those at the end: GR's wordings,
too. The seconds are the processor's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.capacity import drift, requests_of_atlas
from benchmarks.tables import TextColumn
from continual.history.consolidating import CannotConsolidate
from continual.new_store import NewStore, init
from continual.recheck.entries import EDIT, HELD_OUT, LOCALITY, TEST, TRAIN
from continual.requests import Request
from continual.session import Session

ROWS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "past": {"past": True},
    "lead": {"lead_steps": 4},
    "pin": {"pin_norms": True},
    "general": {"general_weight": 6.0},
    "heavy": {"general_weight": 20.0},
    "all": {"past": True, "lead_steps": 4, "pin_norms": True},
}
UNLIMITED = {"neighbours": 0, "watch_max": 1.0, "neighbours_max": 1.0, "spread_max": 1.0}
"""The watch set of the store: general text is there, and refuses nothing."""
RATES = {"ER": EDIT, "GR": HELD_OUT, "TrainR": TRAIN, "TestR": TEST, "Locality": LOCALITY}
COLUMNS = (
    TextColumn("settings", "settings"),
    TextColumn("", "state"),
    TextColumn("applied", "applied", "d"),
    *(TextColumn(name, name, ".4f") for name in RATES),
    TextColumn("drift", "drift", ".4f"),
    TextColumn("columns", "columns", "d"),
    TextColumn("CPU s", "seconds", ".1f"),
)


def rows(
    session: Session, name: str, requests: Sequence[Request], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Make the edits with the settings of a row; yield the table's line of the batches, and that of
    the joint patch. The session is at base before and after."""
    table = {"drift_max": options.drift, **ROWS[name]}
    settings = session.settings(
        chain=(options.editor,), editors={options.editor: table}, batch_size=options.batch
    )
    began = time.process_time()
    for _ in session.apply_requests(requests, settings):
        pass
    yield _line(session, name, "in batches", time.process_time() - began)
    began = time.process_time()
    try:
        session.consolidate()
        yield _line(session, name, "consolidated", time.process_time() - began)
    except CannotConsolidate as error:
        tables.note(str(error))
    session.rollback("base")


def _line(session: Session, name: str, state: str, seconds: float) -> dict[str, Any]:
    ledger = session.run_state.ledger
    counts = {rate: ledger.count(role) for rate, role in RATES.items()}
    layers = session.store.layers("head")
    parts = [part for layer in layers for part in session.patches(layer.patch)]
    return {
        "settings": name,
        "state": state,
        "applied": session.run_state.retention.applied,
        **{rate: count.right / max(1, count.total) for rate, count in counts.items()},
        "drift": drift(session),
        "columns": sum(part.rows for part in parts),
        "seconds": seconds,
    }


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--editor", default="memit")
    parser.add_argument("--drift", type=float, default=0.2)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    requests = requests_of_atlas()[options.skip : options.skip + options.edits]
    lines: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        init(Path(folder) / "store", NewStore(watch=UNLIMITED)) as session,
    ):
        for name in options.rows.split(","):
            for line in rows(session, name, requests, options):
                lines.append(line)
                tables.note(json.dumps(line))
                tables.write_json(options.json, "retention", {"rows": lines})
    title = f"{options.edits} edits of the atlas by {options.editor}, {options.batch} in a batch"
    tables.show(title, COLUMNS, lines)


if __name__ == "__main__":
    main()
