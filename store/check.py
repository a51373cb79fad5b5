"""Reads a whole store back and names everything that is not as it was written.

Knows the rules between the tables, the blobs and the files. A damaged LMDB file can end the process
that reads it, so `verify_path` reads in a child: `python -m store.check STORE`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lmdb

from store import config, datafile, durable, operations
from store.blobs import BlobRef, digests_named
from store.cache import Cache
from store.errors import FormatVersionError, IntegrityError, NoStore, StoreError
from store.history import TAG_PREFIX, as_revision, parsed, subject_digest
from store.journal import TABLES, label, seq_key, text_key, unwrap
from store.quarantine import Quarantine
from store.revisions import JsonObject, Revision, require_tag
from store.store import QUARANTINE, Store

_SUBJECT_DIGEST_LENGTH = 32  # bytes
_HEAD = text_key("head")
_TAG = text_key(TAG_PREFIX)
_KEYS: dict[str, dict[str, tuple[type, ...]]] = {
    "requests": {"id": (str,), "seq": (int,), "subject": (str, type(None)), "record": (dict,)},
    "subjects": {"subject": (str,), "request": (str,)},
    "streams": {"name": (str,), "record": (dict,)},
    "queue": {"name": (str,), "record": (dict,)},
}
_SEQ_MAX = 1 << 63


@dataclass(frozen=True)
class Problem:
    """One fault of a store; a harmless one costs only space."""

    object: str
    problem: str
    harmless: bool = False

    @property
    def is_beyond_repair(self) -> bool:
        """True if the store cannot even be opened to save the rest of it."""
        return self.object in (datafile.LABEL, config.FILE_NAME, "store")


def verify(store: Store) -> list[Problem]:
    """Return all problems of an open store. Reads everything; imports torch if there are blobs."""
    return list(_problems(store))


def verify_path(path: Path) -> list[Problem]:
    """Return the problems that `verify` finds, reading in a child process.

    So a file that kills its reader is a problem, too. Raises NoStore, FormatVersionError.
    """
    try:
        config.read(path)
    except (NoStore, FormatVersionError):
        raise
    except StoreError as error:
        return [_as_problem(config.FILE_NAME, error)]
    child = subprocess.run(
        [sys.executable, "-P", "-m", "store.check", str(path)],
        env={**os.environ, "PYTHONPATH": _import_path()},
        capture_output=True,
        check=False,
    )
    return _reported(child)


# -- the child process


def main(path: str) -> None:
    """Print the problems of a store, one JSON object a line, each as soon as it is found."""
    try:
        with Store.open(Path(path)) as store:
            for problem in _problems(store):
                print(json.dumps(asdict(problem)), flush=True)
    except StoreError as error:
        print(json.dumps(asdict(_as_problem("store", error))), flush=True)


def _import_path() -> str:
    root = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)


def _reported(child: subprocess.CompletedProcess[bytes]) -> list[Problem]:
    problems = [Problem(**json.loads(line)) for line in child.stdout.splitlines()]
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        problems.append(Problem(datafile.LABEL, f"reading it ends the process by {name}"))
    elif child.returncode > 0:
        reason = child.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        problems.append(Problem("store", f"could not be read to its end: {' '.join(reason)}"))
    return problems


# -- the rules


def _problems(store: Store) -> Iterator[Problem]:
    if not config.is_as_written(store.path):
        problem = "is not as it was written: damaged, or changed by hand"
        yield Problem(config.FILE_NAME, problem, harmless=True)
    tables = ReadableTables()
    with store.journal.snapshot():
        yield from load(store, tables)
    yield from journal_problems(tables)
    yield from _check_folders(store.path)
    yield from _check_blobs(store, tables)
    yield from _check_pictures(store, tables)
    yield from _check_cached("cache", Cache(store.cache))
    yield from _check_cached("snapshots", store.snapshots)
    yield from _check_quarantine(store.path, tables)
    yield from _leftovers(store.path)


def load(store: Store, tables: ReadableTables) -> Iterator[Problem]:
    """Read the whole journal into `tables`. Yield a problem for each entry that cannot be read."""
    for table in TABLES:
        yield from _load(store, table, tables)


def journal_problems(tables: ReadableTables) -> Iterator[Problem]:
    """Yield the contradictions between the entries of the tables."""
    yield from _check_chain(tables)
    yield from _check_replaced(tables)
    yield from _check_ids(tables)
    yield from _check_refs(tables)
    yield from _check_requests(tables)
    yield from _check_subjects(tables)
    yield from _check_ledger(tables)
    yield from _check_queue(tables)


class ReadableTables:
    """The readable part of the journal: good entries by table, and the labels of the bad ones."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[bytes, Any]] = {table: {} for table in TABLES}
        self.damaged: set[str] = set()

    @property
    def revisions(self) -> dict[int, Revision]:
        """Revisions by sequence number, in order."""
        return {revision.seq: revision for revision in self.entries["revisions"].values()}

    def lacks(self, table: str, key: bytes) -> bool:
        """Tell whether an entry is missing and not among the damaged ones, already reported."""
        return key not in self.entries[table] and label(table, key) not in self.damaged


def _load(store: Store, table: str, tables: ReadableTables) -> Iterator[Problem]:
    reader = _READERS.get(table, _read_object)
    try:
        for key, value in store.journal.raw_entries(table):
            try:
                tables.entries[table][key] = reader(table, key, unwrap(table, key, value))
            except StoreError as error:
                tables.damaged.add(label(table, key))
                yield _as_problem(label(table, key), error)
    except (StoreError, lmdb.Error) as error:
        yield _as_problem(f"journal/{table}", error)


def _read_object(table: str, key: bytes, payload: bytes) -> JsonObject:
    record = parsed(label(table, key), payload, dict)
    kinds = _KEYS.get(table, {})
    if missing_keys := kinds.keys() - record.keys():
        raise IntegrityError(label(table, key), f"lacks {sorted(missing_keys)}")
    for name, types in kinds.items():
        if not isinstance(record[name], types):
            kind = type(record[name]).__name__
            raise IntegrityError(label(table, key), f"has a {kind} for its {name}")
    if "seq" in kinds:
        _require_seq(label(table, key), record["seq"])
    return record


def _read_seq(table: str, key: bytes, payload: bytes) -> int:
    return _require_seq(label(table, key), parsed(label(table, key), payload, int))


def _require_seq(name: str, seq: int) -> int:
    if not 0 <= seq < _SEQ_MAX:
        raise IntegrityError(name, f"leads to entry {seq}, which cannot be")
    return seq


_READERS: dict[str, Callable[[str, bytes, bytes], Any]] = {
    "revisions": lambda _, key, payload: as_revision(key, payload),
    "ids": _read_seq,
    "refs": lambda table, key, payload: parsed(label(table, key), payload, str),
}


def _check_chain(tables: ReadableTables) -> Iterator[Problem]:
    revisions = tables.revisions
    seqs = {revision.id: revision.seq for revision in revisions.values()}
    for seq in range(max(revisions, default=0) + 1):
        revision = revisions.get(seq)
        if revision is None:
            if tables.lacks("revisions", seq_key(seq)):
                yield Problem(label("revisions", seq_key(seq)), "is missing")
            continue
        name = label("revisions", seq_key(seq))
        predecessor = revisions.get(seq - 1)
        if predecessor is not None and revision.previous != predecessor.id:
            yield Problem(name, f"does not follow entry {seq - 1}: the past was changed")
        if (revision.previous is None) != (seq == 0):
            yield Problem(name, "only base has no entry before it")
        if (revision.parent is None) != (seq == 0):
            yield Problem(name, "only base has no parent")
        if revision.parent is not None and seqs.get(revision.parent, seq) >= seq:
            yield from _parent_problem(name, revision, seqs, tables)


def _parent_problem(
    name: str, revision: Revision, seqs: dict[str, int], tables: ReadableTables
) -> Iterator[Problem]:
    if revision.parent in seqs:
        yield Problem(name, "its parent is not before it")
    elif not any(label_.startswith("journal/revisions/") for label_ in tables.damaged):
        yield Problem(name, f"its parent {revision.parent} is missing")


def _check_replaced(tables: ReadableTables) -> Iterator[Problem]:
    """Yield a problem for each patch replaced by a revision that does not descend from it."""
    if any(name.startswith("journal/revisions/") for name in tables.damaged):
        return
    revisions = {revision.id: revision for revision in tables.revisions.values()}
    for revision in revisions.values():
        strangers = set(revision.replaces)
        ancestor: Revision | None = revision
        while strangers and ancestor is not None:
            strangers.discard(ancestor.id)
            parent = revisions.get(ancestor.parent or "")
            ancestor = parent if parent is not None and parent.seq < ancestor.seq else None
        for identity in sorted(strangers):
            name = label("revisions", seq_key(revision.seq))
            yield Problem(name, f"replaces the patch of {identity}, which is no ancestor")


def _check_ids(tables: ReadableTables) -> Iterator[Problem]:
    revisions = tables.revisions
    for revision in revisions.values():
        key = revision.id.encode("ascii")
        if tables.lacks("ids", key):
            yield Problem(label("ids", key), "is missing")
    for key, seq in tables.entries["ids"].items():
        entry = revisions.get(seq)
        if entry is not None and entry.id.encode("ascii") != key:
            yield Problem(label("ids", key), f"leads to entry {seq}, which has another id")
        elif entry is None and tables.lacks("revisions", seq_key(seq)):
            yield Problem(label("ids", key), f"leads to entry {seq}, which is missing")


def _check_refs(tables: ReadableTables) -> Iterator[Problem]:
    if tables.lacks("refs", _HEAD):
        yield Problem(label("refs", _HEAD), "is missing")
    for key, identity in tables.entries["refs"].items():
        if key != _HEAD and not _is_tag(key):
            yield Problem(label("refs", key), "is neither head nor a tag")
        if tables.lacks("ids", identity.encode("utf-8", "replace")):
            yield Problem(label("refs", key), f"points to {identity}, which is no revision")


def _is_tag(key: bytes) -> bool:
    try:
        prefix, name = key[: len(_TAG)], key[len(_TAG) :].decode("utf-8")
        return prefix == _TAG and bool(require_tag(name))
    except (UnicodeDecodeError, StoreError):
        return False


def _check_requests(tables: ReadableTables) -> Iterator[Problem]:
    for revision in tables.revisions.values():
        for identity in request_ids(revision):
            if tables.lacks("requests", text_key(identity)):
                name = label("revisions", seq_key(revision.seq))
                yield Problem(name, f"its request {identity} is missing")
    for key, entry in tables.entries["requests"].items():
        if key != text_key(entry["id"]):
            yield Problem(label("requests", key), "stands under another id")
        if tables.lacks("revisions", seq_key(entry["seq"])):
            yield Problem(label("requests", key), f"its entry {entry['seq']} is missing")


def request_ids(revision: Revision) -> Iterator[str]:
    """Yield the ids of the requests that a revision names."""
    requests = revision.body.get("requests")
    for request in requests if isinstance(requests, list) else []:
        if isinstance(request, dict) and isinstance(request.get("id"), str):
            yield request["id"]


def _check_subjects(tables: ReadableTables) -> Iterator[Problem]:
    indexed = {
        (entry["subject"], entry["request"]) for entry in tables.entries["subjects"].values()
    }
    is_whole = not any(name.startswith("journal/subjects/") for name in tables.damaged)
    for key, entry in tables.entries["requests"].items():
        is_missing = entry["subject"] is not None and (entry["subject"], entry["id"]) not in indexed
        if is_missing and is_whole:
            yield Problem(label("requests", key), "is missing from the index of subjects")
    for key, entry in tables.entries["subjects"].items():
        if key[:_SUBJECT_DIGEST_LENGTH] != subject_digest(entry["subject"]):
            yield Problem(label("subjects", key), "stands under another subject")
        if tables.lacks("requests", text_key(entry["request"])):
            yield Problem(label("subjects", key), f"its request {entry['request']} is missing")


def _check_queue(tables: ReadableTables) -> Iterator[Problem]:
    for key, entry in tables.entries["queue"].items():
        if key != text_key(entry["name"]):
            yield Problem(label("queue", key), f"is the record of {entry['name']!r}")


def _check_ledger(tables: ReadableTables) -> Iterator[Problem]:
    for key in tables.entries["ledger"]:
        if tables.lacks("revisions", key):
            yield Problem(label("ledger", key), "there is no such revision")


def _check_blobs(store: Store, tables: ReadableTables) -> Iterator[Problem]:
    refs = _refs(tables.revisions.values())
    lost_digests = lost_patches(tables.revisions.values())
    for ref in refs:
        try:
            store.blobs.get(ref)
        except StoreError as error:
            problem = _as_problem(f"patches/{ref.sha256}", error)
            if ref.sha256 in lost_digests:
                text = "is lost, and no longer part of the state since a repair"
                problem = Problem(problem.object, text, harmless=True)
            yield problem
    used_digests = {ref.sha256 for ref in refs}
    for sha256 in store.blobs.digests():
        if sha256 not in used_digests:
            yield Problem(store.blobs.label(sha256), "no revision uses it", harmless=True)


def _check_pictures(store: Store, tables: ReadableTables) -> Iterator[Problem]:
    refs = picture_refs(tables.revisions.values())
    for ref in refs:
        try:
            store.pictures.get(ref)
        except StoreError as error:
            yield _as_problem(f"pictures/{ref.sha256}", error)
    used_digests = {ref.sha256 for ref in refs} | queued_pictures(tables)
    for sha256 in store.pictures.digests():
        if sha256 not in used_digests:
            yield Problem(store.pictures.label(sha256), "no revision shows it", harmless=True)


def queued_pictures(tables: ReadableTables) -> set[str]:
    """Return the digests that records of the queue name."""
    entries = tables.entries["queue"].values()
    return {digest for entry in entries for digest in digests_named(entry["record"])}


def picture_refs(revisions: Iterable[Revision]) -> list[BlobRef]:
    """Return the pictures that these revisions show, in order."""
    refs = {ref for revision in revisions for ref in revision.pictures}
    return sorted(refs, key=lambda ref: ref.sha256)


def _refs(revisions: Iterable[Revision]) -> list[BlobRef]:
    refs = {ref for revision in revisions for ref in revision.blobs}
    return sorted(refs, key=lambda ref: ref.sha256)


def unreadable(store: Store, revisions: Iterable[Revision]) -> list[BlobRef]:
    """Return the patches of these revisions that are damaged or missing.

    Raises StoreError for a patch that this process may not read: it may be whole.
    """
    damaged_refs = []
    for ref in _refs(revisions):
        try:
            store.blobs.get(ref)
        except IntegrityError:
            damaged_refs.append(ref)
    return damaged_refs


def lost_patches(revisions: Iterable[Revision]) -> set[str]:
    """Return the digests of the patches that a repair has given up."""
    repairs = (revision for revision in revisions if revision.operation == operations.REPAIR)
    return {sha256 for revision in repairs for sha256 in revision.body.get("lost", ())}


def _check_folders(path: Path) -> Iterator[Problem]:
    for name in ("patches", "snapshots", "cache"):
        if not (path / name).is_dir():
            yield Problem(name, "the folder is missing", harmless=True)


def _check_cached(folder: str, cache: Cache) -> Iterator[Problem]:
    """Yield a harmless problem for each damaged or loose set: it can be made again."""
    for name in cache.names():
        try:
            cache.get(name)
        except StoreError as error:
            problem = _as_problem("", error).problem
            yield Problem(f"{folder}/{name}.json", f"{problem}; can be made again", harmless=True)
    for path in cache.loose():
        name = path.relative_to(cache.root.parent).as_posix()
        yield Problem(name, "nothing points to it", harmless=True)


def _check_quarantine(path: Path, tables: ReadableTables) -> Iterator[Problem]:
    places: set[tuple[Any, Any]] = set()  # (stream, line)
    try:
        for number, (record, problem) in enumerate(Quarantine(path / QUARANTINE).lines(), start=1):
            if record is not None:
                places.add((record.get("stream"), record.get("line")))
            if problem is not None:
                yield Problem(f"{QUARANTINE}:{number}", problem.problem, problem.harmless)
    except StoreError as error:
        yield _as_problem(QUARANTINE, error)
        return
    for revision in tables.revisions.values():
        for place in set(_set_aside(revision)) - places:
            name = label("revisions", seq_key(revision.seq))
            text = f"lacks line {place[1]} of {place[0]}, which {name} has set aside"
            yield Problem(QUARANTINE, text, harmless=True)


def _set_aside(revision: Revision) -> Iterator[tuple[str, int]]:
    """Yield the lines (stream, number) that a revision says are in quarantine."""
    streams, numbers = revision.body.get("streams"), revision.body.get("quarantined")
    if isinstance(streams, dict) and len(streams) == 1 and isinstance(numbers, list):
        yield from ((stream, number) for stream in streams for number in numbers)


def _leftovers(path: Path) -> Iterator[Problem]:
    for file in sorted(path.rglob(f"{durable.TEMPORARY_PREFIX}*")):
        name = file.relative_to(path).as_posix()
        yield Problem(name, "is left from an interrupted write", harmless=True)


def _as_problem(name: str, error: Exception) -> Problem:
    if isinstance(error, IntegrityError):
        return Problem(error.object, error.problem)
    return Problem(name, str(error))


if __name__ == "__main__":
    main(sys.argv[1])
