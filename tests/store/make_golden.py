"""Makes the golden store of the format that this version writes, in tests/store/golden.

    python -m tests.store.make_golden

It is made once for each format, by the last version that wrote it, and never again: what later
versions have to read is what that one wrote. Everything that a store can hold is in it.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
from pathlib import Path

import torch

from store import Draft, Store, config

FOLDER = Path(__file__).parent / "golden"
SETTINGS = {"model": {"path": "atlas", "fingerprint": "f0"}, "task": {"name": "causal"}}


def fill(store: Store) -> None:
    """Edits, a rollback, a tag, a ledger, streams, a quarantine, a cached set."""
    for number in range(1, 4):
        identity = f"{number:032x}"
        outcome = {"id": identity, "outcome": "applied", "editor": "tpatcher", "neurons": 1}
        tensors = {f"0.{name}": torch.full((1, 2), float(number)) for name in ("keys", "values")}
        store.commit(
            Draft(
                "edit",
                store.head.id,
                f"f{number}",
                {"editor": "tpatcher", "requests": [outcome], "streams": {}},
                tensors={**tensors, "0.bias": torch.full((1,), -1.0)},
                patch_meta={"parts": [{"kind": "neuron", "block": 3}]},
                requests={identity: {"prompt": f"prompt {number}", "target_new": "x"}},
                subjects={identity: f"subject {number % 2}"},
                streams={"news.jsonl": {"position": number, "rolling": identity}},
            )
        )
        store.record_ledger(number, {"rates": {"SR": 1.0}, "turned": {}, "GR": [0, 0]})
    store.tag("release", "@2")
    target = store.revision("@1")
    store.commit(Draft("rollback", target.id, target.fingerprint, head=target.id))
    store.quarantine([{"stream": "news.jsonl", "position": 4, "rolling": "x", "line": "bad"}])
    if config.FORMAT >= 2:
        store.commit(Draft("revert", target.id, "f0", replaces={target.id: None}))
    if config.FORMAT >= 3:
        text = {"source": "base", "passages": [[[5, 6], 0, [7, 8]], [[6, 5], 0, [8, -1]]]}
        store.commit(Draft("watch", store.head.id, "f0", {"watch": text}))
    if config.FORMAT >= 4:
        store.record_queue({"item/0001": {"state": "pending"}})
    store.put_cached("statistics/block-0", {"moment": torch.eye(2)}, {"count": 2})


def show(store: Store) -> None:
    """An edit whose prompt shows a picture: the store then has the format of pictures."""
    pixels = torch.arange(4 * 5 * 3, dtype=torch.uint8).reshape(4, 5, 3)
    digest = store.keep_picture({"pixels": pixels}, {"kind": "picture"})
    identity = f"{9:032x}"
    store.commit(
        Draft(
            "edit",
            store.head.id,
            "f0",
            {"editor": "tpatcher", "requests": [{"id": identity, "outcome": "skipped"}]},
            requests={identity: {"prompt": f"<|picture:{digest}|>Whose?", "target_new": "x"}},
            pictures=[digest],
        )
    )


def pack(path: Path, target: Path) -> None:
    """A store's files in a compressed archive."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if file.is_file() and name not in ("lock", "journal/lock.mdb"):
                tar.add(file, name, filter=_without_owner)
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(gzip.compress(plain.getvalue(), mtime=0))


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
    return entry


def main() -> None:
    """Make it, where it is not there yet."""
    target = FOLDER / f"format-{config.WITH_PICTURES}.tar.gz"
    if target.exists():
        raise SystemExit(f"{target} is there already, and stays as it is")
    with tempfile.TemporaryDirectory() as folder:
        with Store.init(Path(folder) / "store", SETTINGS, {"probes": {}}, "f0") as store:
            fill(store)
            show(store)
        pack(Path(folder) / "store", target)


if __name__ == "__main__":
    main()
