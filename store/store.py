"""The store: one durable, append-only history of revisions, and the only face others import.

Knows the folder's layout and the order of writes that survives a crash (blob, then one journal
transaction, then the answer). Leaves the meaning of records and tensors to its callers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from store import config, durable, migrate, operations
from store.blobs import BlobRef, Blobs, digest_of, digests_named
from store.cache import Cache, Cached
from store.errors import NoStore, StorageFault, StoreError, StoreExists, StoreFull, reading
from store.history import TAG_PREFIX, History, ledger_entry, point, queue_change
from store.journal import MAP_SIZE_BYTES, Journal, Put, text_key
from store.lock import WriterLock
from store.quarantine import Quarantine
from store.revisions import Draft, JsonObject, Layer, Revision, layers, payload_of, require_tag
from store.snapshots import PATCHES, Segment, Segmenter

if TYPE_CHECKING:
    from torch import Tensor

FOLDER_NAME = ".cedit"
ENVIRONMENT_VARIABLE = "CEDIT_STORE"
_UNFINISHED_JOURNAL = f"{durable.TEMPORARY_PREFIX}journal"
QUARANTINE = "quarantine.jsonl"
_OWN_NAMES = frozenset({"lock", "journal", "patches", "snapshots", "cache", "pictures", QUARANTINE})


class Store:
    """A store that is open: for reading by any number of processes, for writing by one.

    Use it as a context manager. After StoreFull or StorageFault it has closed itself. After a fork,
    the child opens its own.
    """

    def __init__(self, path: Path, writable: bool, map_size_bytes: int = MAP_SIZE_BYTES) -> None:
        self.path = path
        self.writable = writable
        self.settings: dict[str, Any] = config.read(path)
        self.blobs = Blobs(path / "patches")
        self.pictures = Blobs(path / "pictures", "pictures")
        self._lock = WriterLock.acquire(path / "lock") if writable else None
        try:
            if writable:  # a writer that was killed may have made folders, and not synced them
                durable.make_folder_durably(self.blobs.root)
                durable.sync_folder_durably(self.blobs.root)
            with reading(path):
                self.journal = Journal(path / "journal", writable, map_size_bytes)
        except BaseException:
            self._release()
            raise
        self.history = History(self.journal)
        self._quarantine = Quarantine(path / QUARANTINE)
        self._cache = Cache(self.cache)
        self.snapshots = Cache(path / "snapshots")
        self.patches_per_segment = PATCHES
        self._writer: ThreadPoolExecutor | None = None  # writes patches while a step goes on

    # -- opening and closing

    @classmethod
    def init(
        cls,
        path: Path,
        settings: Mapping[str, Any],
        base_body: Mapping[str, Any],
        fingerprint: str,
        pictures: Iterable[tuple[Mapping[str, Tensor], Mapping[str, Any]]] = (),
    ) -> Store:
        """Make a store with its base revision, which shows these `pictures`, and open it for
        writing.

        The leftovers of an interrupted `init` are made anew: cedit.toml is written last, and
        without it there is no store. Raises StoreExists, StoreLocked, StoreFull.
        """
        path = _located(path)
        _require_vacant(path)
        durable.make_folder_durably(path)
        durable.sync_folder_durably(path.parent)
        lock = WriterLock.acquire(path / "lock")
        try:
            _require_vacant(path)
            album = Blobs(path / "pictures", "pictures")
            refs = [album.put(tensors, meta) for tensors, meta in pictures]
            _build_journal(path, base_body, fingerprint, refs)
            for folder in ("patches", "snapshots", "cache"):
                durable.make_folder_durably(path / folder)
            config.write(path, settings)
            if refs:
                migrate.require_format(path, config.WITH_PICTURES)
        finally:
            lock.release()
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: Path, writable: bool = False) -> Store:
        """Open a store. Raises NoStore, StoreLocked, FormatVersionError, IntegrityError."""
        return cls(_located(path), writable)

    @staticmethod
    def find(start: Path | None = None, explicit: str | None = None) -> Path:
        """Return the path of the store: `explicit`, else CEDIT_STORE, else the nearest `.cedit`
        upward.

        Raises NoStore if there is no store at that place.
        """
        name = explicit or os.environ.get(ENVIRONMENT_VARIABLE)
        start_folder = (start or Path.cwd()).absolute()
        if name:
            candidates = [start_folder / _located(name)]
        else:
            candidates = [folder / FOLDER_NAME for folder in (start_folder, *start_folder.parents)]
        for candidate in candidates:
            if config.exists(candidate):
                return candidate
        raise NoStore(candidates[0])

    def close(self) -> None:
        """Let go of the files and the lock. Closing again does nothing."""
        if self._writer is not None:
            self._writer.shutdown()
        self.journal.close()
        self._release()

    def discard(self) -> None:
        """Close a store that was only just made, and remove its folder. cedit.toml goes first:
        without it there is no store."""
        self.close()
        with suppress(StoreError):  # the person should hear of the first error
            durable.remove_durably([self.path / config.FILE_NAME])
        if not config.exists(self.path):
            shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- reading

    @property
    def cache(self) -> Path:
        """A folder of files that can be made again; it may be missing, and emptied at any time."""
        return self.path / "cache"

    @property
    def length(self) -> int:
        """The number of entries in the journal, base included."""
        return self.history.length

    @property
    def head(self) -> Revision:
        """The revision that the model stands at now."""
        return self.history.head

    @property
    def head_id(self) -> str:
        """The id of head, without its record."""
        return self.history.head_id

    @cached_property
    def base(self) -> Revision:
        """The first revision: the model before any edit."""
        return self.history.at(0)

    def revision(self, name: str | Revision) -> Revision:
        """Return a revision by name: head, base, head~2, @7, a tag, an id or its unique start (4
        digits or more).

        Raises UnknownRevision, AmbiguousRevision.
        """
        return self.history.resolve(name)

    def revisions(self, first_seq: int = 0) -> Iterator[Revision]:
        """Yield all entries in the order in which they were made, rolled back ones included."""
        return self.history.entries(first_seq)

    def lineage(self, revision: str | Revision) -> list[Revision]:
        """Return base … revision along the parents, oldest first."""
        return self.history.lineage(self.history.resolve(revision))

    def between(self, older: str | Revision, newer: str | Revision) -> list[Revision]:
        """Return the ancestors of `newer`, itself included, that are not ancestors of `older`."""
        return self.history.between(self.history.resolve(older), self.history.resolve(newer))

    def tensors(self, revision: str | Revision) -> tuple[dict[str, Tensor], JsonObject] | None:
        """Return the revision's patch and its meta; None if it has none. Raises IntegrityError."""
        patch = self.history.resolve(revision).patch
        return None if patch is None else self.blobs.get(patch)

    def layers(self, revision: str | Revision) -> list[Layer]:
        """Return the layers of a revision's state, oldest first. Base and their patches make the
        state."""
        return layers(self.lineage(revision))

    def patch(self, ref: BlobRef) -> tuple[dict[str, Tensor], JsonObject]:
        """Return the tensors of a patch and their meta. Raises IntegrityError."""
        return self.blobs.get(ref)

    def picture(self, sha256: str) -> dict[str, Tensor]:
        """Return the tensors of a picture by its digest. Raises IntegrityError if it is missing or
        damaged."""
        return self.pictures.get(self.pictures.ref(sha256))[0]

    def pictures_from(self, digits: str) -> list[str]:
        """Return the digests of the pictures here that begin with these digits, four or more."""
        return self.pictures.starting_with(digits)

    def request(self, identity: str) -> JsonObject:
        """Return the record of a request. Raises StoreError if there is none."""
        entry = self.history.request(identity)
        if entry is None:
            raise StoreError(f"no request {identity!r} in {self.path}: see `cedit log`")
        return dict(entry["record"])

    def requests_about(self, key: str) -> list[str]:
        """Return the ids of the requests about a subject, in the order in which they were made."""
        return self.history.requests_about(key)

    def ledger(self, seq: int) -> JsonObject | None:
        """Return the ledger's record for the revision with this sequence number, if any."""
        return self.history.ledger(seq)

    def stream(self, name: str) -> JsonObject | None:
        """Return the state of a stream as of the last commit that set it, if there is one."""
        return self.history.stream(name)

    def streams(self) -> dict[str, JsonObject]:
        """Return the states of all streams by name."""
        return self.history.streams()

    def queue_entry(self, name: str) -> JsonObject | None:
        """Return the record of the queue under a name, if there is one."""
        return self.history.queue_entry(name)

    def queue_entries(self, prefix: str = "") -> Iterator[tuple[str, JsonObject]]:
        """Yield the names of the queue that begin with `prefix`, in their order, with their
        records."""
        return self.history.queue_entries(prefix)

    def pictures_shown(self) -> set[str]:
        """Return the digests of the pictures that revisions show, and the queue's records."""
        shown = {ref.sha256 for revision in self.revisions() for ref in revision.pictures}
        return shown | {d for _, record in self.queue_entries() for d in digests_named(record)}

    def tags(self) -> dict[str, str]:
        """Return the revision ids by tag."""
        return self.history.tags()

    def quarantined(self) -> Iterator[JsonObject]:
        """Yield the records in quarantine, oldest first."""
        return self._quarantine.records()

    # -- the cache: readers may write it too

    def cached(self, name: str) -> Cached | None:
        """Return the tensors cached under a name, such as "statistics/block-0"; None without any.

        Raises IntegrityError where they are damaged.
        """
        return self._cache.get(name)

    def put_cached(self, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
        """Cache tensors under a name, durably and all at once; return the digest of their file.

        Raises StoreError for a bad name, NaN or Inf, StoreFull, StorageFault; the history is not
        touched, so the store stays open.
        """
        return self._cache.put(name, tensors, meta)

    @staticmethod
    def cached_digest(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
        """Return the digest that `put_cached` would return, and write nothing. Raises StoreError
        for a bad name, NaN or Inf."""
        return digest_of(tensors, meta)

    def drop_cached(self, name: str) -> None:
        """Remove the tensors cached under a name."""
        self._cache.drop(name)

    def segmenter(self) -> Segmenter:
        """Return a new Segmenter, which cuts the layers of a state, from base on, into segments."""
        return Segmenter(self.base.fingerprint, self.patches_per_segment)

    def segments(self, layers: Iterable[Layer]) -> list[Segment]:
        """Return the segments of a state for which a snapshot may be kept, oldest first."""
        return self.segmenter().take_all(layers)

    def snapshots_needed(self) -> set[str]:
        """Return the names of the snapshots on the way to head or a tag."""
        states = {self.head_id, *self.tags().values()}
        return {s.name for state in states for s in self.segments(self.layers(state))}

    # -- writing

    def write_ahead(
        self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> Future[BlobRef]:
        """Begin to write a patch while the caller goes on; return the `written` of a draft.

        The commit raises any error of the write. Without a commit the patch is a file that nothing
        names.
        """
        with self._writing():
            durable.require_room(self.path, _size(tensors))
            if self._writer is None:
                self._writer = ThreadPoolExecutor(1, thread_name_prefix="cedit-patches")
            return self._writer.submit(self.blobs.put, tensors, meta)

    def commit(self, draft: Draft) -> Revision:
        """Append a revision, durably and all at once, and move head. When this returns, it is done.

        The patch is on the disk before the journal names it.

        Raises StoreError for a draft that does not fit the history, StoreFull, StorageFault.
        """
        with self._writing():
            self.history.require_fitting(draft)
            durable.require_room(self.path, _size_of_draft(draft))
            seq = self.length
            previous = self.history.at(seq - 1).id
            patch = None
            if draft.tensors is not None:
                patch = self.blobs.put(draft.tensors, draft.patch_meta)
            elif draft.written is not None:
                patch = draft.written.result()
            replaces = {
                identity: None
                if replacement is None
                else self.blobs.put(replacement.tensors, replacement.meta)
                for identity, replacement in draft.replaces.items()
            }
            pictures = [self.pictures.ref(sha256) for sha256 in sorted(set(draft.pictures))]
            if pictures:
                migrate.require_format(self.path, config.WITH_PICTURES)
            payload = payload_of(draft, seq, previous, patch, replaces, pictures)
            revision = Revision.from_payload(payload)
            self.journal.write(self.history.changes(draft, revision, payload))
            return revision

    def keep_picture(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
        """Write a picture durably, and return its digest. Until a revision names it, nothing leads
        to its file. Raises StoreFull, StorageFault."""
        with self._writing():
            durable.require_room(self.path, _size(tensors))
            return self.pictures.put(tensors, meta).sha256

    def record_ledger(self, seq: int, record: Mapping[str, Any]) -> None:
        """Set the ledger's record for a revision that exists; a later record replaces it."""
        with self._writing():
            if not 0 <= seq < self.length:
                raise StoreError(f"no revision @{seq} to keep a ledger for")
            self.journal.write([ledger_entry(seq, record)])

    def record_queue(self, records: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Set records of the queue by name, durably and all at once; None forgets one.

        The queue is made with its first record; the store then has a format that older versions
        refuse. Raises StoreError for a name that is too long, StoreFull, StorageFault.
        """
        with self._writing():
            durable.require_room(self.path, 0)
            changes = [queue_change(name, record) for name, record in records.items()]
            migrate.require_format(self.path, config.WITH_QUEUE)
            self.journal.write(changes)

    def tag(self, name: str, revision: str | Revision) -> None:
        """Give a revision a name; a tag that exists moves. Raises StoreError, UnknownRevision."""
        with self._writing():
            identity = self.history.resolve(revision).id
            self.journal.write([point(TAG_PREFIX + require_tag(name), identity)])

    def untag(self, name: str) -> str:
        """Remove a tag, and return the id that it stood for. Raises StoreError if there is none."""
        with self._writing():
            identity = self.tags().get(name)
            if identity is None:
                raise StoreError(f"there is no tag {name!r}: `cedit tag` lists them")
            self.journal.write([Put("refs", text_key(TAG_PREFIX + name), None)])
            return identity

    def change_setting(self, table: str, key: str, value: str) -> None:
        """Set one text of cedit.toml, durably; all else in it stays as it is."""
        with self._writing():
            config.change(self.path, table, key, value)
            self.settings = config.read(self.path)

    def quarantine(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Put records in quarantine, unless their (stream, position, rolling) is there already."""
        with self._writing():
            self._quarantine.add(records)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if not self.writable:
            raise StoreError(f"{self.path} is open for reading only: open it writable")
        try:
            yield
        except (StoreFull, StorageFault):
            self.close()
            raise

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def _located(path: Path | str) -> Path:
    """Return the whole path of a store, `~` being a home. Raises StoreError if it is no path."""
    try:
        location = Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise StoreError(f"{str(path)!r} names the home of nobody known here: {error}") from error
    if "\0" in str(location):
        raise StoreError(f"{str(path)!r} can't name a folder: it holds a NUL character")
    return location


def _size(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes that tensors take on the disk, about."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _size_of_draft(draft: Draft) -> int:
    """Return the bytes of a draft's unwritten tensors; the margin has room for its records."""
    tensor_sets = [
        replacement.tensors for replacement in draft.replaces.values() if replacement is not None
    ]
    return sum(map(_size, [*tensor_sets, draft.tensors or {}]))


def _require_vacant(path: Path) -> None:
    """Raise StoreExists unless a store may be made here: in no folder, an empty one, leftovers."""
    with reading(path):
        if path.exists() and not path.is_dir():
            raise StoreExists(path, "is a file")
        if config.exists(path):
            raise StoreExists(path)
        names = [entry.name for entry in path.iterdir()] if path.exists() else []
    for name in names:
        if name not in _OWN_NAMES and not name.startswith(durable.TEMPORARY_PREFIX):
            raise StoreExists(path, f"the folder holds {name!r}")


def _build_journal(
    path: Path, base_body: Mapping[str, Any], fingerprint: str, pictures: Sequence[BlobRef] = ()
) -> None:
    """Make a journal with base and head. It is built aside: `journal` is whole or not there."""
    temporary, folder = path / _UNFINISHED_JOURNAL, path / "journal"
    _discard_leftover(path, folder)
    shutil.rmtree(temporary, ignore_errors=True)
    durable.make_folder_durably(temporary)
    journal = Journal(temporary, writable=True)
    try:
        draft = Draft(operations.BASE, None, fingerprint, base_body)
        payload = payload_of(draft, seq=0, previous=None, patch=None, pictures=pictures)
        base = Revision.from_payload(payload)
        journal.write(History(journal).changes(draft, base, payload))
    finally:
        journal.close()
    durable.sync_folder_durably(temporary)  # LMDB syncs its file's content, but not the file's name
    durable.move_durably(temporary, folder)


def _discard_leftover(path: Path, folder: Path) -> None:
    """Remove the leftovers of a broken `init`, but never a history that has lost its cedit.toml."""
    if not (folder / "data.mdb").exists():
        shutil.rmtree(folder, ignore_errors=True)
        return
    journal = Journal(folder, writable=False)
    try:
        length = History(journal).length
    finally:
        journal.close()
    if length > 1:
        raise StoreExists(path, f"cedit.toml is missing beside a history of {length} revisions")
    shutil.rmtree(folder)
