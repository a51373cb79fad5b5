"""Measures the edited model as other tools load it: `cedit save` in each form and number format.

    python -m benchmarks.saving [--model DIR | --world NAME] [--stream FILE] [--skip N]
        [--edits tpatcher=50,memit=20] [--forms transformers,peft] [--dtypes float32,bfloat16]
        [--texts N] [--neighbours N] [--calibrated] [--unlimited] [--statistics PACK]
        [--train-probes FILE] [--test-probes FILE] [--cache DIR] [--json OUT]

Each editor corrects the first requests of the stream that it gets right, so many of them, in a
store of its own with the editor's neurons plain: no context, and no subject to ask for. The store
is saved in each form and number format, loaded by transformers or peft alone, and asked every
probe again. The base in the same number format is asked, too: what turns there is rounding, and no
matter of the edits. `--model` is the atlas unless named, with its own corrections and probes;
`--world` is a small model of made-up facts, which is trained first. `--unlimited` takes the budgets
of the watch set off: on some models it refuses all edits of matrices. `--statistics` is a pack of
`cedit train stats --out`.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch

from benchmarks import tables
from benchmarks.calibration import corrections_of
from benchmarks.calibration_worlds import WORLDS, facts_of, model_of
from benchmarks.tables import TextColumn
from continual.base import number_format
from continual.embedded import ATLAS
from continual.errors import CeditError
from continual.loading import load_pretrained
from continual.model_files import model_directory
from continual.new_store import NewStore, init
from continual.readers import read_record
from continual.recheck.run_state import Past, RunState
from continual.requests import Request
from continual.saving.proof import RoleProof, prove
from continual.session import Session
from continual.streams import open_stream

GROUPS: Mapping[str, Sequence[str]] = {
    "corrections": ("edit",),
    "wordings": ("rephrase", "held_out"),
    "other probes": ("locality", "portability", "train", "test"),
    "text": ("watch", "neighbour", "continuation"),
}
COLUMNS = (
    TextColumn("editor", "editor"),
    TextColumn("form", "form"),
    TextColumn("format", "dtype"),
    *(TextColumn(group, group) for group in GROUPS),
    TextColumn("the base's turned", "base turned"),
    TextColumn("FFN or rank", "size"),
    TextColumn("MiB", "mib", ",.1f"),
    TextColumn("base MiB", "base_mib", ",.1f"),
    TextColumn("s", "seconds", ",.1f"),
)
MIB = 1 << 20
UNLIMITED = {"watch_max": 1.0, "neighbours_max": 1.0, "spread_max": 1.0}
BATCHED = ("memit", "emmet", "alphaedit")


def requests_of(options: argparse.Namespace) -> Iterator[Request]:
    """Yield the requests of the stream, or of the world."""
    if options.world:
        world = WORLDS[options.world]
        for record in corrections_of(world, facts_of(world), options.world_edits):
            yield from read_record(record)
        return
    stream = options.stream or ATLAS.corrections
    for item in open_stream(str(stream)):
        yield from item.requests


def store_of(options: argparse.Namespace, folder: Path) -> Session:
    """Make a store whose neurons a wider FFN can have."""
    model = str(model_of(WORLDS[options.world], options.cache)) if options.world else options.model
    probes = {
        name: path
        for name in ("train_probes", "test_probes")
        if (path := getattr(options, name)) is not None
    }
    return init(
        folder,
        NewStore(
            model,
            anatomy={"context": "none"},
            editors={"tpatcher": {"asks_subject": False}},
            watch={
                "texts": options.texts,
                "neighbours": options.neighbours,
                **(UNLIMITED if options.unlimited else {}),
            },
            calibration={"at_first_use": options.calibrated},
            **probes,
        ),
    )


def corrected(session: Session, editor: str, count: int, requests: Iterator[Request]) -> int:
    """Apply requests until so many are applied; return their number."""
    size = count if editor in BATCHED else 1
    settings = session.settings(chain=(editor,), batch_size=size)
    for request in requests:
        missing = count - session.in_force
        if missing <= 0:
            break
        batch = [request, *islice(requests, min(size, missing) - 1)]
        for step in session.apply_requests(batch, settings):
            tables.note(f"  {editor}: {session.in_force} of {count} ({step.revision.seq} steps)")
    session.settle()
    return session.in_force


def base_turned(session: Session, dtype: str) -> str:
    """Count the probes of the base that turn where it runs in another number format."""
    directory = model_directory(session.store.settings["model"]["path"])
    model = load_pretrained(directory, session.task.architecture, number_format(dtype)).model
    try:
        base = session.stand_at("base")
        ledger = RunState(session.store, session.site, Past(base)).ledger
        roles = prove(session.site, ledger, model, session.listener).roles
    finally:
        session.stand_at_head()
    turned, count = (sum(getattr(role, n) for role in roles.values()) for n in ("turned", "probes"))
    return f"{turned} of {count}"


def measured(session: Session, form: str, dtype: str, folder: Path) -> dict[str, Any]:
    """Save once; return the row of the table."""
    base = model_directory(session.store.settings["model"]["path"])
    base_bytes = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    try:
        saved = session.save(folder / f"{form}-{dtype}", form, dtype=dtype)
    except CeditError as error:
        tables.note(f"  {form}: {error}")
        return {"form": form, "dtype": dtype, "refused": str(error)}
    facts = saved.facts
    widening = facts.get("widening")
    size = f"{widening['before']} → {widening['width']}" if widening else facts.get("rank")
    shutil.rmtree(saved.directory)
    return {
        "form": form,
        "dtype": dtype,
        **{group: _counts(facts["probes"], roles) for group, roles in GROUPS.items()},
        "size": str(size or "-"),
        "mib": saved.length / MIB,
        "base_mib": base_bytes / MIB,
        "seconds": saved.seconds,
        "probes": facts["probes"],
        "unexpected": len(saved.unexpected),
    }


def _counts(probes: Mapping[str, Mapping[str, int]], roles: Sequence[str]) -> str:
    """Return right in cedit, right when saved and turned of some roles, in short."""
    rows = [RoleProof(**probes[role]) for role in roles if role in probes]
    here, there, turned, count = (
        sum(getattr(row, name) for row in rows)
        for name in ("right_in_history", "right_when_saved", "turned", "probes")
    )
    return f"{here} → {there} of {count}, {turned} turned" if count else "-"


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of all editors."""
    for part in options.edits.split(","):
        editor, _, count = part.partition("=")
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            requests = islice(requests_of(options), options.skip, None)
            with store_of(options, Path(scratch) / "store") as session:
                if options.statistics is not None:
                    session.statistics.take_in(options.statistics)
                applied = corrected(session, editor, int(count), requests)
                dtypes = options.dtypes.split(",")
                turned = {dtype: base_turned(session, dtype) for dtype in dtypes}
                for form, dtype in product(options.forms.split(","), dtypes):
                    row = measured(session, form, dtype, Path(scratch))
                    facts = {"editor": editor, "applied": applied, "base turned": turned[dtype]}
                    yield {**facts, **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=ATLAS.name)
    parser.add_argument("--world", choices=tuple(WORLDS))
    parser.add_argument("--world-edits", type=int, default=100)
    parser.add_argument("--stream", type=Path)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--edits", default="tpatcher=50,memit=20")
    parser.add_argument("--forms", default="transformers,peft")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--neighbours", type=int, default=16)
    parser.add_argument("--calibrated", action="store_true")
    parser.add_argument("--unlimited", action="store_true")
    parser.add_argument("--statistics", type=Path, metavar="PACK")
    parser.add_argument("--train-probes", type=Path)
    parser.add_argument("--test-probes", type=Path)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "cedit-benchmarks")
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.cache.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in measure(options):
        rows.append(row)
        tables.note(str({key: value for key, value in row.items() if key != "probes"}))
    tables.show("saved", COLUMNS, rows)
    tables.write_json(options.json, "saving", {"rows": rows})


if __name__ == "__main__":
    main()
