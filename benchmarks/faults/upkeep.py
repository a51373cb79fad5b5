"""Work on a whole store (repair, export, import, migrate), and its state if that is broken off.

Each kind of work prepares a disk, is performed, and finds faults in the disk that is left:
acknowledged work is there, and unacknowledged work can be done again and comes to the same. Leaves
the breaking off to others.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.faults import workload
from store import Draft, Store, StoreError, archive, canonical, config, operations, repair
from store.check import verify
from store.journal import Put, seq_key, text_key
from store.migrate import BACKUP, migrate

FOLDER = "store"
ARCHIVE = "archive.tar"
KINDS = ("step", "quarantine", "dense", "rollback", "tag", "ledger", "inline")
ACTS = workload.plan(len(KINDS) + 1, KINDS)
DONE = len(KINDS)  # the last act is done when all else is
OLD_FORMAT = 1
HURT = workload.plan(6, ("step", "cache", "quarantine", "dense", "step", "bare"))
_FORMAT = re.compile(rb"(?m)^format = [0-9]+$")
_MARK = re.compile(rb"(?m)^# sha256 .*\n")


@dataclass(frozen=True)
class Upkeep:
    """One kind of work on a whole store. Every folder is the one that the store lies in."""

    name: str
    prepare: Callable[[Path], None]  # the disk before it
    perform: Callable[[Path], None]
    faults_of: Callable[[Path, bool], list[str]]  # was it acknowledged?

    def look(self, folder: Path, is_done: bool) -> list[str]:
        """Return the faults of the disk that is left; a refusal by the store is one too."""
        try:
            return self.faults_of(folder, is_done)
        except StoreError as error:
            return [f"{type(error).__name__}: {error}"]


def _fill(folder: Path, acts: list[workload.Act]) -> Path:
    path = folder / FOLDER
    workload.make(path)
    with Store.open(path, writable=True) as store:
        for act in acts:
            workload.perform(store, act)
    return path


# -- export and import


def _prepare_export(folder: Path) -> None:
    _fill(folder, ACTS[:DONE])


def _export(folder: Path) -> None:
    with Store.open(folder / FOLDER) as store:
        archive.export(store, folder / ARCHIVE)


def _faults_of_export(folder: Path, is_done: bool) -> list[str]:
    """Return the faults of an export: an archive that has its name must be whole."""
    file = folder / ARCHIVE
    if not file.exists():
        if is_done:
            return ["the archive was acknowledged, and is gone"]
        _export(folder)
    archive.restore(file, folder / "restored")
    return [
        f"{name}: {fault}"
        for name in (FOLDER, "restored")
        for fault in workload.faults_of(folder / name, ACTS, DONE)
    ]


def _prepare_import(folder: Path) -> None:
    _prepare_export(folder)
    _export(folder)
    shutil.rmtree(folder / FOLDER)


def _import(folder: Path) -> None:
    archive.restore(folder / ARCHIVE, folder / FOLDER)


def _faults_of_import(folder: Path, is_done: bool) -> list[str]:
    """Return the faults of an import: a store that has its name must be whole."""
    path = folder / FOLDER
    if not path.exists():
        if is_done:
            return ["the store was acknowledged, and is gone"]
        _import(folder)
    return workload.faults_of(path, ACTS, DONE)


# -- migrate


def _prepare_migrate(folder: Path) -> None:
    """Make a store of the old format: these acts write the same in both."""
    file = _fill(folder, ACTS[:DONE]) / config.FILE_NAME
    text = _MARK.sub(b"", _FORMAT.sub(b"format = %d" % OLD_FORMAT, file.read_bytes()))
    file.write_bytes(config.marked(text))


def _migrate(folder: Path) -> None:
    migrate(folder / FOLDER)


def _faults_of_migrate(folder: Path, is_done: bool) -> list[str]:
    """Return the faults of a migration: one format or the other, and the old state kept whole."""
    path = folder / FOLDER
    if is_done and config.found_format(path) != config.FORMAT:
        return ["the new format was acknowledged, and is not there"]
    _migrate(folder)
    kept = path / BACKUP / f"format-{OLD_FORMAT}"
    found = []
    if config.found_format(kept) != OLD_FORMAT or not config.is_as_written(kept):
        found.append("the settings from before are not kept")
    if (kept / "data.mdb").read_bytes() != (path / "journal" / "data.mdb").read_bytes():
        found.append("the journal from before is not kept")
    return found + workload.faults_of(path, ACTS, DONE)


# -- repair


def _prepare_repair(folder: Path) -> None:
    """Make a store that is damaged in all ways that a repair knows.

    The damage is at the journal's end and in its indexes, in a patch, in the cache and in the
    quarantine; a file that is nobody's is there too.
    """
    path = _fill(folder, HURT)
    with Store.open(path, writable=True) as store:
        patch = next(one.patch for one in store.revisions() if one.body.get("number") == 3)
        assert patch is not None
        last = store.revision(f"@{store.length - 1}")
        store.blobs.put(workload.tensors_of(99), {})
        store.journal.write(
            [
                Put("ids", store.revision("@1").id.encode("ascii"), canonical.dumps(4)),
                Put("refs", text_key("head"), None),
                Put("revisions", seq_key(last.seq), b"{}"),
            ]
        )
        store.blobs.path(patch.sha256).write_bytes(b"nonsense")
    next((path / "cache").rglob("*.safetensors")).write_bytes(b"nonsense")
    with (path / "quarantine.jsonl").open("ab") as opened:
        opened.write(b"nonsense\n")


def _repair(folder: Path) -> None:
    """Repair as `cedit verify --repair` does, without a model to measure."""
    path = folder / FOLDER
    with Store.open(path, writable=True) as store:
        chosen = repair.plan(store)
        repair.carry_out(store, chosen)
    if chosen.lost:
        with Store.open(path, writable=True) as store:
            lost = {ref.sha256 for ref in chosen.lost}
            gone = [one for one in store.lineage("head") if one.patch and one.patch.sha256 in lost]
            body = {"lost": sorted(lost)}
            replaces = {one.id: None for one in gone}
            store.commit(Draft(operations.REPAIR, store.head_id, "healed", body, replaces=replaces))


def _faults_of_repair(folder: Path, is_done: bool) -> list[str]:
    """Return the faults of a repair: it ends as if nothing broke it off, and throws nothing
    away."""
    if not is_done:
        _repair(folder)
    wanted = _healed()
    found = _told(folder / FOLDER)
    return [
        f"{name} is {found[name]}, not {wanted[name]}"
        for name in wanted
        if found[name] != wanted[name]
    ]


@cache
def _healed() -> dict[str, Any]:
    """Return the result of a repair that nothing breaks off."""
    with tempfile.TemporaryDirectory() as folder:
        _prepare_repair(Path(folder))
        _repair(Path(folder))
        return _told(Path(folder) / FOLDER)


def _told(path: Path) -> dict[str, Any]:
    """Return all that a store says, and the files that a repair has set aside."""
    aside = [file for file in (path / repair.ASIDE).rglob("*") if file.is_file()]
    with Store.open(path) as store:
        return {
            "problems": [f"{p.object}: {p.problem}" for p in verify(store) if not p.harmless],
            "ids": [revision.id for revision in store.revisions()],
            "head": store.head_id,
            "layers": [one.patch and one.patch.sha256 for one in store.layers("head")],
            "patches": sorted(store.blobs.digests()),
            "streams": store.streams(),
            "ledger": [store.ledger(seq) for seq in range(store.length)],
            "subjects": [store.requests_about(f"subject {number}") for number in range(3)],
            "quarantined": list(store.quarantined()),
            "cached": store.cached("statistics/block-0") is not None,
            "aside": sorted({(file.name, _digest(file)) for file in aside}),
        }


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


ALL = (
    Upkeep("verify --repair", _prepare_repair, _repair, _faults_of_repair),
    Upkeep("export", _prepare_export, _export, _faults_of_export),
    Upkeep("import", _prepare_import, _import, _faults_of_import),
    Upkeep("migrate", _prepare_migrate, _migrate, _faults_of_migrate),
)
