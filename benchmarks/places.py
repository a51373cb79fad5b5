"""T-Patcher at every place of a model: the metrics of each block, key and landing.

    python -m benchmarks.places [--model atlas|fever] [--edits 20] [--keys ffn,hidden,pooled]
                                [--blocks 0,1,…] [--remote] [--threads N] [--json OUT]

The same corrections are applied one by one at each place, in one store that goes back to base in
between. Neurons ask for no subject; copies and all else are as the store's settings have them. A
key is read at a block, and its value lands in the same block; with `--remote` also on the last FFN.
The table has the rate of rewordings (GR), the rates of answers that stay (TestR, TrainR, ER), and
the milliseconds of processor time that a step takes: the edit, its re-check and the commit.

The atlas is measured on a part of its probes, `fever` on a classifier that is trained here for
`--training` seconds and kept in the cache: too short to be compared with the protocol's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks import tables
from benchmarks.capacity import requests_of_atlas
from benchmarks.counterfact_model import data_folder, default_cache
from benchmarks.protocol import settings as protocol
from benchmarks.scores import drawn
from benchmarks.tables import TextColumn
from continual.effects.places import FFN, KEYS, GatePlace
from continual.embedded import ATLAS
from continual.new_store import NewStore, init
from continual.requests import Request
from continual.session import Session
from continual.watch.config import UNWATCHED

COLUMNS = (
    TextColumn("key", "key"),
    TextColumn("block", "block", "d"),
    TextColumn("value lands on", "lands"),
    *(TextColumn(name, name, ".3f") for name in ("SR", "GR", "ER", "TrainR", "TestR")),
    TextColumn("CPU ms, step", "step_ms", ".0f"),
)


def places(last: int, keys: Sequence[str], blocks: Sequence[int], remote: bool) -> list[GatePlace]:
    """Return the places with these keys at these blocks; with `remote` also the places below the
    last block with values that land on its FFN."""
    local = [GatePlace.at(block, key) for key in keys for block in blocks]
    far = [GatePlace.at(b, key, last, FFN) for key in keys for b in blocks if b < last]
    return local + (far if remote else [])


def run(session: Session, place: GatePlace, requests: Sequence[Request]) -> dict[str, Any]:
    """Apply the requests at one place; return its row. The store is at base before and after."""
    table = {"asks_subject": False, **place.to_json()}
    own = session.settings(chain=("tpatcher",)).editors.get("tpatcher", {})
    settings = session.settings(chain=("tpatcher",), editors={"tpatcher": {**own, **table}})
    began = time.process_time()
    steps = list(session.apply_requests(requests, settings))
    seconds = time.process_time() - began
    measured = steps[-1].measured
    assert measured is not None
    row = {
        "key": place.key,
        "block": place.block,
        "lands": place.landing,
        **measured.rates.to_json(),
        "step_ms": 1000 * seconds / len(steps),
        "edits": len(steps),
    }
    session.rollback("base")
    tables.note(json.dumps(row))
    return row


@contextmanager
def atlas(options: argparse.Namespace) -> Iterator[tuple[Session, list[Request]]]:
    """Make a store of the atlas with some of its probes; yields its session and corrections."""
    with tempfile.TemporaryDirectory() as folder:
        probes = {
            f"{name}_probes": _some(path, options.probes, Path(folder))
            for name, path in ATLAS.probes.items()
        }
        with init(Path(folder) / "store", NewStore(watch=UNWATCHED, **probes)) as session:
            yield session, list(drawn(requests_of_atlas(), options.edits))


@contextmanager
def fever(options: argparse.Namespace) -> Iterator[tuple[Session, list[Request]]]:
    """Make a store of a classifier of claims; yields its session, and corrections of claims that it
    gets wrong."""
    recipe = replace(protocol.RECIPES["bert"], seconds_max=options.training)
    protocol.RECIPES["bert"] = recipe
    asked = protocol.SettingChoices("bert", data_folder(), default_cache(), seed=0)
    setting = protocol.fever(asked)
    splits = setting.splits
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = _written(folder / "train.jsonl", splits.train_sample(options.probes, 0))
        test = _written(folder / "test.jsonl", splits.test[: options.probes])
        new = NewStore(
            str(setting.model),
            task=setting.engine_task,
            train_probes=train,
            test_probes=test,
            watch=UNWATCHED,
        )
        with init(folder / "store", new) as session:
            requests = [Request.from_json(example.request()) for example in splits.edit]
            wrong = (request for request in requests if _is_wrong(session, request))
            yield session, list(islice(wrong, options.edits))


def _is_wrong(session: Session, request: Request) -> bool:
    said = session.ask(request.prompt)
    return bool(said != request.target_new)


def _some(path: Path, count: int, folder: Path) -> Path:
    """Write every n-th line of a file, `count` at most, to the folder; return the new file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = lines[:: max(1, len(lines) // count)][:count]
    written = folder / path.name
    written.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return written


def _written(path: Path, examples: Sequence[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(e.probe())}\n" for e in examples), encoding="utf-8")
    return path


MODELS: Mapping[str, Any] = {"atlas": atlas, "fever": fever}


def main() -> None:
    """Run the benchmark by the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=tuple(MODELS), default="atlas")
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--probes", type=int, default=400, help="of training, and of test")
    parser.add_argument("--keys", default=",".join(KEYS))
    parser.add_argument("--blocks", help="numbers with commas; all of them unless given")
    parser.add_argument("--remote", action="store_true")
    parser.add_argument("--training", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with MODELS[options.model](options) as (session, requests):
        last = session.site.block
        blocks = [int(b) for b in options.blocks.split(",")] if options.blocks else range(last + 1)
        asked = places(last, options.keys.split(","), blocks, options.remote)
        rows = [run(session, place, requests) for place in asked]
    tables.show(f"{len(requests)} corrections of {options.model}, by place", COLUMNS, rows)
    tables.write_json(options.json, "places", {"places": rows})


if __name__ == "__main__":
    main()
