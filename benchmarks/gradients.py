"""Measures editors by gradients on the atlas, one correction after another.

    python -m benchmarks.gradients [--rows NAME,…] [--edits N] [--skip N] [--every N]
        [--set KEY=VALUE …] [--network METHOD=FILE …] [--bare] [--single]
        [--watched] [--json OUT]

A row is an editor with some of its settings: see `ROWS`. Rows of a trained editor need its network,
as `cedit train` leaves it. `--set` adds settings to all rows, in TOML, such as `margin=2.0`. With
`--bare` the edits are put on the base without a store, which is faster: nothing is proved, retried
or re-checked, and a tenth of the test probes is asked. `--single` does so for each edit alone, and
the rates are of all texts together.
`--skip` leaves out the first corrections, so that settings are chosen on others than those they are
measured on. Without `--watched` nothing is watched, so that a row shows what the method itself
does; with it an edit that changes general text or neighbours is made smaller, or refused. SR counts
refused edits as wrong.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import tables
from benchmarks.tables import TextColumn
from continual.editors.chains import make_editor
from continual.embedded import ATLAS
from continual.gradients.trained import NetworkFile
from continual.new_store import NewStore, init
from continual.proposals import Edit, EditContext, Editor
from continual.recheck.ledger import TEST
from continual.recheck.retention import APPLIED, ATTEMPTED
from continual.requests import Request
from continual.session import Session
from continual.step.pipeline import Step
from continual.step.settings import Recheck
from continual.streams import open_stream
from continual.tasks import Encoding
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
TESTS_EVERY = 10  # test probes of which one is asked after a single edit
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
        settings = session.settings(
            chain=(editor,), editors={editor: table}, recheck=Recheck(every=NEVER)
        )
        steps = session.apply_requests(_requests(options.skip), settings)
        attempts = (s for s in steps if s.outcomes and s.outcomes[0].outcome in ATTEMPTED)
        for count in range(options.every, options.edits + 1, options.every):
            yield _row(session, name, count, list(itertools.islice(attempts, options.every)))


def run_bare(names: Sequence[str], options: argparse.Namespace, more: Mapping[str, Any]) -> Any:
    """Yield a row for each name, of edits that are put on the base without a history: one after
    another, or with `--single` each alone."""
    with (
        tempfile.TemporaryDirectory() as folder,
        init(Path(folder) / "store", NewStore(watch=UNWATCHED)) as session,
    ):
        for name in names:
            editor, table = ROWS[name]
            table = {**table, **options.networks.get(editor, {}), **more}
            yield _bare_row(session, name, make_editor(editor, table), options)
            session.edited.take_off(0)


def _bare_row(
    session: Session, name: str, editor: Editor, options: argparse.Namespace
) -> dict[str, Any]:
    """Edit and measure: single edits each at its own end, a stream's at the end of all."""
    site, edits = session.site, list(_wrong_edits(session, options))
    verdicts: dict[str, list[bool]] = {}
    started = time.perf_counter()
    for edit in edits:
        depth = site.edited.depth
        patch = editor.edit([edit], _context(session)).patch
        site.edited.put([] if patch is None else [patch])
        _judge(session, verdicts, {"SR": edit.encodings})
        if options.single:
            _judge(session, verdicts, _texts(session, [edit]))
            site.edited.take_off(depth)
    if not options.single:
        _judge(session, verdicts, {"ER": [edit.encodings[0] for edit in edits[:-1]]})
        _judge(session, verdicts, _texts(session, edits))
    return {
        "row": f"{name}, {'single' if options.single else 'bare'}",
        "edits": len(edits),
        **{rate: sum(values) / len(values) for rate, values in verdicts.items() if values},
        "edit_s": (time.perf_counter() - started) / len(edits),
    }


def _wrong_edits(session: Session, options: argparse.Namespace) -> Iterator[Edit]:
    """Yield the first corrections that the base answers wrongly."""
    count = 0
    for request in _requests(options.skip):
        encoding = session.task.encode(request.prompt, request.target_new)
        if count < options.edits and not session.site.judge_in_full([encoding])[0]:
            yield Edit(request, (encoding,), ())
            count += 1


def _texts(session: Session, edits: Sequence[Edit]) -> dict[str, Sequence[Encoding]]:
    """Return the held-out rephrases and locality probes of some edits, and some test probes."""
    encode = session.task.encode
    requests = [edit.request for edit in edits]
    entries = session.run_state.ledger.entries
    return {
        "GR": [encode(t, r.target_new) for r in requests for t in r.held_out_rephrases],
        "Locality": [encode(p.prompt, p.answer) for r in requests for p in r.locality],
        "TestR": [entry.encoding for entry in entries if entry.role == TEST][::TESTS_EVERY],
    }


def _judge(
    session: Session, verdicts: dict[str, list[bool]], texts: Mapping[str, Sequence[Encoding]]
) -> None:
    """Add the verdicts on some texts to those of their rates."""
    for rate, encodings in texts.items():
        verdicts.setdefault(rate, []).extend(session.site.judge_in_full(list(encodings)))


def _context(session: Session) -> EditContext:
    run_state = session.run_state
    return EditContext(
        session.site, run_state.memory, torch.Generator(), known_answers=run_state.known_answers
    )


def _requests(skip: int) -> Iterator[Request]:
    for item in itertools.islice(open_stream(str(ATLAS.corrections)), skip, None):
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
    parser.add_argument("--bare", action="store_true")
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
    names = options.rows.split(",")
    is_bare = options.bare or options.single
    runs = [run_bare(names, options, more)] if is_bare else [run(n, options, more) for n in names]
    for row in itertools.chain.from_iterable(runs):
        rows.append(row)
        tables.note(f"{row['row']} {more or ''}: {row['edits']} edits, {_told(row)}")
        tables.write_json(options.json, "gradients", {"rows": rows})  # a run may break off
    tables.show("Editors by gradients on the atlas", COLUMNS, rows)


def _network(path: Path) -> dict[str, str]:
    """Return the lines of an editor's table that name a network."""
    file = NetworkFile.of(path.absolute())
    return {"network": str(file.path), "network_digest": file.digest}


def _told(row: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {row[name]:.3f}" for name in RATES if row.get(name) is not None)


if __name__ == "__main__":
    main()
