"""Repair of a store: heals damage, sets aside the rest, and names every loss before it happens.

The journal is made anew from its readable entries: the chain up to its first break, the indexes
that follow from the entries, head from the last of them. It is built aside and takes the old one's
place in one rename; the old one is kept in `damaged/`. Damaged sets of cache and snapshots, which
can be made again, go, and so do files that serve nothing (orphans, leftovers). Patches that cannot
be read are set aside; the engine makes the state without them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

from store import canonical, check, durable, gc, operations
from store.blobs import BlobRef, Blobs
from store.cache import Cache
from store.check import ReadableTables
from store.errors import IntegrityError, StoreError
from store.history import (
    TAG_PREFIX,
    ledger_entry,
    point,
    queue_change,
    stream_entry,
    subject_digest,
    subject_key,
)
from store.journal import Journal, Put, label, seq_key, text_key
from store.quarantine import Quarantine
from store.revisions import JsonObject, Revision
from store.store import QUARANTINE, Store

FOLDERS = ("patches", "snapshots", "cache")
ASIDE = "damaged"  # the folder for parts that cannot be healed
_CHUNK = 4096  # changes in a transaction
_NEW_JOURNAL = f"{durable.TEMPORARY_PREFIX}repaired"


@dataclass(frozen=True)
class Remedy:
    """The action against one problem."""

    object: str
    action: str
    loses: str | None = None  # the loss, in words


@dataclass(frozen=True)
class RepairPlan:
    """The remedies for a store, and the patches that have none here."""

    remedies: tuple[Remedy, ...]
    lost: tuple[BlobRef, ...]  # patches of revisions that are kept, and cannot be read
    journal: Salvage | None  # the new journal, if the old one is damaged
    loose: tuple[Path, ...]  # files to remove
    cached: tuple[tuple[str, str], ...]  # folder and name of damaged sets
    lines: tuple[int, ...]  # bad lines of the quarantine file, from 1
    pictures: tuple[str, ...] = ()  # digests of pictures that are shown, and cannot be read

    @property
    def loses(self) -> list[str]:
        """All losses of the plan, in words."""
        return [remedy.loses for remedy in self.remedies if remedy.loses]


@dataclass
class Salvage:
    """The parts of a journal that a repair keeps."""

    revisions: dict[int, Revision]
    payloads: dict[int, bytes]
    requests: dict[str, JsonObject]
    subjects: dict[str, bytes]  # known keys by request
    ledger: dict[int, JsonObject]
    tags: dict[str, str]
    streams: dict[str, JsonObject]
    queue: dict[str, JsonObject]
    head: str
    remedies: list[Remedy] = field(default_factory=list)


def plan(store: Store) -> RepairPlan:
    """Return the remedies for a store. Changes nothing.

    Raises IntegrityError where not even the base can be read: only an archive helps then.
    """
    tables = ReadableTables()
    with store.journal.snapshot():
        problems = list(check.load(store, tables))
        problems += check.journal_problems(tables)
        salvage = _salvage(store, tables) if problems else None
    revisions = tables.revisions if salvage is None else salvage.revisions
    remedies = [] if salvage is None else list(salvage.remedies)
    remedies += [Remedy(name, "make the folder") for name in _missing_folders(store)]
    damaged_sets = tuple(_damaged_sets(store))
    remedies += [
        Remedy(f"{folder}/{name}", "drop it: it can be made again") for folder, name in damaged_sets
    ]
    loose_files = tuple(_loose(store, tables, revisions))
    for path in loose_files:
        name = path.relative_to(store.path).as_posix()
        remedies.append(Remedy(name, "remove it: nothing leads to it"))
    lines = tuple(_bad_lines(store.path))
    for number in lines:
        name = f"{QUARANTINE}:{number}"
        remedies.append(Remedy(name, f"move the line to {ASIDE}/"))
    lost_pictures = tuple(_lost_pictures(store, revisions))
    remedies += [
        Remedy(
            store.pictures.label(sha256),
            f"move it to {ASIDE}/ if it is there: the same picture, given again, is put back",
            "a picture: until it is put back, nothing that shows it can be asked or measured",
        )
        for sha256 in lost_pictures
    ]
    lost_digests = check.lost_patches(revisions.values())
    lost_refs = [
        ref for ref in check.unreadable(store, revisions.values()) if ref.sha256 not in lost_digests
    ]
    return RepairPlan(
        tuple(remedies),
        tuple(lost_refs),
        salvage,
        loose_files,
        damaged_sets,
        lines,
        lost_pictures,
    )


def carry_out(store: Store, chosen: RepairPlan) -> None:
    """Carry out a plan. The store is closed in the end: open it again.

    If this is interrupted, a new plan finds the rest.
    """
    folder_aside = _folder_aside(store.path)
    for name in _missing_folders(store):
        durable.make_folder_durably(store.path / name)
    for folder, name in chosen.cached:
        _cache(store, folder).drop(name)
    durable.remove_durably(sorted(chosen.loose, reverse=True))
    if chosen.lines:
        _move_lines(store.path / QUARANTINE, chosen.lines, folder_aside)
    _set_aside(store.blobs, [ref.sha256 for ref in chosen.lost], folder_aside)
    _set_aside(store.pictures, chosen.pictures, folder_aside)
    store.journal.close()
    if chosen.journal is not None:
        _replace_journal(store.path, chosen.journal, folder_aside)
    store.close()


# -- the journal


def _salvage(store: Store, tables: ReadableTables) -> Salvage:
    revisions = _sound_entries(tables)
    if not revisions:
        raise IntegrityError(
            "journal/revisions/0",
            "the base cannot be read, and with it nothing else: import an archive (`cedit import`)",
        )
    ids = {revision.id for revision in revisions.values()}
    salvage = Salvage(
        revisions=revisions,
        payloads={seq: _payload(store, seq) for seq in revisions},
        requests={e["id"]: e for e in tables.entries["requests"].values() if e["seq"] in revisions},
        subjects=_subject_keys(tables),
        ledger={
            int.from_bytes(key, "big"): record
            for key, record in tables.entries["ledger"].items()
            if int.from_bytes(key, "big") in revisions
        },
        tags=_tags(tables, ids),
        streams={e["name"]: e["record"] for e in tables.entries["streams"].values()},
        queue={e["name"]: e["record"] for e in tables.entries["queue"].values()},
        head=_head(tables, revisions),
    )
    salvage.remedies += _journal_remedies(tables, salvage)
    if len(revisions) < _length(tables):
        salvage.streams = _streams_of(salvage)
    return salvage


def _length(tables: ReadableTables) -> int:
    """Return the number of entries that there were, as far as can be seen."""
    seqs = [int.from_bytes(key, "big") for key in tables.entries["revisions"]]
    damaged_seqs = [
        int(name.rpartition("/")[2])
        for name in tables.damaged
        if name.startswith("journal/revisions/")
    ]
    return max([-1, *seqs, *damaged_seqs]) + 1


def _sound_entries(tables: ReadableTables) -> dict[int, Revision]:
    """Return the entries from base on up to the first that is not as it was written."""
    revisions: dict[int, Revision] = {}
    ids: set[str] = set()
    for seq in range(_length(tables)):
        revision = tables.entries["revisions"].get(seq_key(seq))
        if revision is None or not _is_sound(revision, revisions, ids, tables):
            break
        revisions[seq] = revision
        ids.add(revision.id)
    return revisions


def _is_sound(
    revision: Revision, before: Mapping[int, Revision], ids: set[str], tables: ReadableTables
) -> bool:
    if revision.seq == 0:
        return revision.previous is None and revision.parent is None
    if revision.previous != before[revision.seq - 1].id or revision.parent not in ids:
        return False
    if not revision.replaces.keys() <= ids:
        return False
    identities = check.request_ids(revision)
    return all(text_key(identity) in tables.entries["requests"] for identity in identities)


def _payload(store: Store, seq: int) -> bytes:
    payload = store.journal.get("revisions", seq_key(seq))
    assert payload is not None
    return payload


def _subject_keys(tables: ReadableTables) -> dict[str, bytes]:
    """Return the sound keys of the index of subjects, by request."""
    return {
        entry["request"]: key
        for key, entry in tables.entries["subjects"].items()
        if key.startswith(subject_digest(entry["subject"]))
    }


def _head(tables: ReadableTables, kept: Mapping[int, Revision]) -> str:
    """Return head as it stands, or as the last entry left it."""
    head = tables.entries["refs"].get(text_key("head"))
    if head is not None and any(revision.id == head for revision in kept.values()):
        return str(head)
    tip = kept[max(kept)]
    return str(tip.parent if tip.operation == operations.ROLLBACK else tip.id)


def _tags(tables: ReadableTables, ids: set[str]) -> dict[str, str]:
    prefix = text_key(TAG_PREFIX)
    return {
        key[len(prefix) :].decode("utf-8"): identity
        for key, identity in tables.entries["refs"].items()
        if key.startswith(prefix) and identity in ids
    }


def _streams_of(salvage: Salvage) -> dict[str, JsonObject]:
    """Return the states of the streams at head, as its ancestors record them."""
    revisions = {revision.id: revision for revision in salvage.revisions.values()}
    states: dict[str, JsonObject] = {}
    revision: Revision | None = revisions[salvage.head]
    while revision is not None:
        states = {**revision.body.get("streams", {}), **states}
        revision = revisions.get(revision.parent or "")
    return states


def _journal_remedies(tables: ReadableTables, salvage: Salvage) -> Iterator[Remedy]:
    lost_count = _length(tables) - len(salvage.revisions)
    if lost_count:
        end = len(salvage.revisions)
        yield Remedy(
            label("revisions", seq_key(end)),
            f"end the history at @{end - 1}; the whole journal is kept in {ASIDE}/",
            f"{lost_count} revision{'s' if lost_count > 1 else ''} from @{end} on",
        )
    if tables.entries["refs"].get(text_key("head")) != salvage.head:
        yield Remedy("journal/refs/head", f"let head be {salvage.head[:12]}")
    for key in _bad_keys(tables, "refs", {text_key("head")}):
        name = label("refs", key)
        if name.removeprefix(f"journal/refs/{TAG_PREFIX}") not in salvage.tags:
            yield Remedy(name, "drop the tag", f"the tag {name.rpartition('/')[2]}")
    for name in sorted(tables.damaged):
        if name.startswith("journal/ledger/"):
            yield Remedy(name, "drop the record", "the metrics of that revision")
        if name.startswith("journal/streams/"):
            yield Remedy(
                name, "drop it: the stream is read from its beginning", "a stream's position"
            )
        if name.startswith("journal/queue/"):
            yield Remedy(name, "drop the record", "a correction that waited, or its key")
    yield Remedy("journal", "make the indexes anew from the entries")


def _bad_keys(tables: ReadableTables, table: str, good: set[bytes]) -> list[bytes]:
    """Return the keys of a table, readable or damaged, that are not among the `good` ones."""
    damaged_keys = {
        text_key(name.removeprefix(f"journal/{table}/"))
        for name in tables.damaged
        if name.startswith(f"journal/{table}/")
    }
    return sorted(({*tables.entries[table]} | damaged_keys) - good)


def _replace_journal(path: Path, salvage: Salvage, aside: Path) -> None:
    """Write the new journal aside, keep a copy of the old one, and rename the new one into
    place."""
    staging, data_file = path / _NEW_JOURNAL, path / "journal" / "data.mdb"
    shutil.rmtree(staging, ignore_errors=True)
    durable.make_folder_durably(staging)
    journal = Journal(staging, writable=True)
    try:
        changes = iter(_changes(salvage))
        while chunk := list(islice(changes, _CHUNK)):
            journal.write(chunk)
    finally:
        journal.close()
    durable.make_folder_durably(aside)
    durable.copy_durably(data_file, aside / "data.mdb")
    durable.move_durably(staging / "data.mdb", data_file)
    durable.remove_durably([*sorted(staging.iterdir()), staging])


def _changes(salvage: Salvage) -> Iterator[Put]:
    for seq, revision in salvage.revisions.items():
        yield Put("revisions", seq_key(seq), salvage.payloads[seq])
        yield Put("ids", revision.id.encode("ascii"), canonical.dumps(seq))
    for place, (identity, entry) in enumerate(salvage.requests.items()):
        yield Put("requests", text_key(identity), canonical.dumps(entry))
        if entry["subject"] is not None:
            key = salvage.subjects.get(identity)
            key = key or subject_key(entry["subject"], entry["seq"], place)
            payload = canonical.dumps({"subject": entry["subject"], "request": identity})
            yield Put("subjects", key, payload)
    for seq, record in salvage.ledger.items():
        yield ledger_entry(seq, record)
    for name, record in salvage.streams.items():
        yield stream_entry(name, record)
    for name, record in salvage.queue.items():
        yield queue_change(name, record)
    for tag, identity in salvage.tags.items():
        yield point(TAG_PREFIX + tag, identity)
    yield point("head", salvage.head)


# -- files


def _missing_folders(store: Store) -> list[str]:
    return [name for name in FOLDERS if not (store.path / name).is_dir()]


def _cache(store: Store, folder: str) -> Cache:
    return store.snapshots if folder == "snapshots" else Cache(store.cache)


def _damaged_sets(store: Store) -> Iterator[tuple[str, str]]:
    for folder in ("cache", "snapshots"):
        cache = _cache(store, folder)
        for name in cache.names():
            try:
                cache.get(name)
            except StoreError:
                yield folder, name


def _loose(
    store: Store, tables: ReadableTables, revisions: Mapping[int, Revision]
) -> Iterator[Path]:
    used_digests = {ref.sha256 for revision in revisions.values() for ref in revision.blobs}
    for sha256 in store.blobs.digests():
        if sha256 not in used_digests:
            yield store.blobs.path(sha256)
    shown_digests = {ref.sha256 for revision in revisions.values() for ref in revision.pictures}
    shown_digests |= check.queued_pictures(tables)
    for sha256 in store.pictures.digests():
        if sha256 not in shown_digests:
            yield store.pictures.path(sha256)
    yield from (garbage.path for garbage in gc.leftovers(store))


def _bad_lines(path: Path) -> Iterator[int]:
    lines = Quarantine(path / QUARANTINE).lines()
    for number, (record, problem) in enumerate(lines, start=1):
        if record is None or not (problem is None or problem.harmless):
            yield number


def _move_lines(file: Path, numbers: tuple[int, ...], aside: Path) -> None:
    with file.open("rb") as stream:
        lines = list(stream)
    bad_lines = b"".join(lines[number - 1] for number in numbers)
    good_lines = [line for number, line in enumerate(lines, start=1) if number not in numbers]
    durable.write_durably(aside / file.name, bad_lines)
    durable.write_durably(file, b"".join(good_lines))


def _lost_pictures(store: Store, revisions: Mapping[int, Revision]) -> Iterator[str]:
    for ref in check.picture_refs(revisions.values()):
        try:
            store.pictures.get(ref)
        except IntegrityError:
            yield ref.sha256


def _set_aside(blobs: Blobs, lost: Sequence[str], aside: Path) -> None:
    for sha256 in lost:
        path = blobs.path(sha256)
        if path.is_file():
            durable.make_folder_durably(aside)
            durable.move_durably(path, aside / path.name)


def _folder_aside(path: Path) -> Path:
    """Return a folder of its own for each repair; it is made when a file goes there."""
    folders = (path / ASIDE / str(number) for number in count(1))
    return next(folder for folder in folders if not folder.exists())
