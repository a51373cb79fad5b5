"""The journal: LMDB tables of checksummed payloads, changed by one durable transaction at a time.

Knows LMDB: its map that must grow, its errors, its ways with forks and damaged files. Leaves the
meaning of keys and payloads to `history` and `store`. Every payload is checked before it is
returned.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import lmdb

from store import datafile, errors
from store.errors import IntegrityError, StorageFault, StoreError, StoreFull

TABLES = ("revisions", "ids", "requests", "subjects", "ledger", "refs", "streams", "queue")
LATER = frozenset({"queue"})
"""Tables that are made with their first entry: a journal without them has none in them."""
LIB_VERSION = 0  # LMDB 0.9's, of the two formats that py-lmdb bundles
MAP_SIZE_BYTES = 64 << 20
MAP_SIZE_MAX_BYTES = 1 << 40
ROOM_MIN_BYTES = 1 << 20
SPARE_BYTES = 1 << 18  # length of the data file beyond its content
_CHECKSUM_LENGTH = 16  # bytes of a SHA-256
_CHUNK_LENGTH = 256  # entries read in one transaction, so that no reader is ever a long one
_SEQ_LENGTH = 8  # bytes
_TREE_BYTES = 4 << 12  # of pages that a change may copy on its way down a tree
_TEXT_KEY_MAX = 500  # bytes; LMDB's own limit is 511
_NUMBERED = frozenset({"revisions", "ledger"})


class Put(NamedTuple):
    """One change of a transaction; a payload of None deletes. An entry put `once` never changes."""

    table: str
    key: bytes
    payload: bytes | None
    once: bool = False


def seq_key(seq: int) -> bytes:
    """Return the key of a sequence number. Keys sort as their numbers do."""
    return seq.to_bytes(_SEQ_LENGTH, "big")


def text_key(text: str) -> bytes:
    """Return a key for any text; a long text gives its digest."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) < _TEXT_KEY_MAX:
        return b"=" + data
    return b"#" + hashlib.sha256(data).hexdigest().encode("ascii")


def label(table: str, key: bytes) -> str:
    """Return the name of an entry in messages."""
    if table in _NUMBERED:
        return f"journal/{table}/{int.from_bytes(key, 'big')}"
    if key[:1] in (b"=", b"#"):
        return f"journal/{table}/{key[1:].decode('utf-8', 'replace')}"
    return f"journal/{table}/{key.decode('ascii') if key.isalnum() else key.hex()}"


class Journal:
    """An LMDB environment that is open. Threads may share it; a forked child may not use it."""

    def __init__(self, folder: Path, writable: bool, map_size_bytes: int = MAP_SIZE_BYTES) -> None:
        self.folder = folder
        self._writable = writable
        self._map_size_bytes = map_size_bytes
        self._pid = os.getpid()
        self._turn = threading.RLock()  # the map may only grow while no transaction is open
        self._snapshot: lmdb.Transaction | None = None
        self._environment: lmdb.Environment | None = self._open()
        try:
            with self._read_faults():
                tables = {name: self._table(name) for name in TABLES}
                self._tables = {name: table for name, table in tables.items() if table is not None}
        except BaseException:
            self.close()
            raise

    # -- reading

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the payload under a key, or None. Raises IntegrityError if its checksum is
        wrong."""
        if table not in self._tables:
            return None
        with self._reading() as transaction:
            value = transaction.get(key, db=self._tables[table])
        return None if value is None else unwrap(table, key, value)

    def entries(self, table: str, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and payloads in the order of the keys, from `start` on."""
        for key, value in self.raw_entries(table, start):
            yield key, unwrap(table, key, value)

    def raw_entries(self, table: str, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield entries as `entries` does, with the values as they stand on disk, unchecked."""
        while chunk := self._chunk(table, start):
            yield from chunk
            start = chunk[-1][0] + b"\0"

    def last_key(self, table: str) -> bytes | None:
        """Return the largest key of a table; None for an empty one."""
        if table not in self._tables:
            return None
        with self._reading() as transaction:
            cursor = transaction.cursor(self._tables[table])
            return cursor.key() if cursor.last() else None

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Hold one moment: inside `with`, all reads of this journal see it; other threads wait."""
        with self._reading() as self._snapshot:
            try:
                yield
            finally:
                self._snapshot = None

    # -- writing

    def write(self, changes: Sequence[Put]) -> None:
        """Make all changes or none, durably. The map grows as it must.

        Raises StoreFull or StorageFault; the journal has then closed itself, for only a new
        environment is known to show the disk's content.
        """
        with self._turn, self._write_faults():
            self._make_room(changes)
            while not self._try(changes):
                self._grow()
            self._fill()

    def close(self) -> None:
        """Let go of the environment. Closing again does nothing."""
        with self._turn:
            if self._environment is not None:
                self._environment.close()
                self._environment = None

    # -- LMDB

    def _open(self) -> lmdb.Environment:
        data_file = self.folder / "data.mdb"
        if data_file.exists() or not self._writable:
            datafile.require_whole(data_file)
        try:
            return lmdb.open(
                os.fsencode(self.folder),
                map_size=self._map_size_bytes,
                max_dbs=len(TABLES),
                readonly=not self._writable,
                lock=self._writable or os.access(self.folder, os.W_OK),
                lib_version=LIB_VERSION,
            )
        except (lmdb.Error, OSError) as error:  # OSError: from py-lmdb's own look at the folder
            if "already open in this process" in str(error):
                raise StoreError(
                    f"{self.folder.parent} is already open in this process: use that Store, "
                    "or close it first (a forked child too)"
                ) from error
            raise self._fault(error) from error

    def _table(self, name: str) -> lmdb._Database | None:
        """Open a table; None for one that comes later and is not there yet."""
        creates = self._writable and name not in LATER
        try:
            return self._live().open_db(name.encode("ascii"), create=creates)
        except lmdb.NotFoundError as error:
            if name in LATER:
                return None
            raise IntegrityError(f"journal/{name}", "the table is missing") from error

    def _make_tables(self, names: Iterable[str]) -> None:
        """Make tables that are needed and not there, each durably."""
        for name in sorted(names):
            if name not in self._tables:
                self._tables[name] = self._live().open_db(name.encode("ascii"))

    def _live(self) -> lmdb.Environment:
        if os.getpid() != self._pid:
            raise StoreError(
                f"{self.folder.parent} was opened by process {self._pid}, which this one forked "
                "from: close it here and open it anew"
            )
        if self._environment is None:
            raise StoreError(f"{self.folder.parent} is closed: open it again")
        return self._environment

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction]:
        with self._turn, self._read_faults():
            if self._snapshot is not None:
                yield self._snapshot
                return
            with self._begin() as transaction:
                yield transaction

    def _begin(self, write: bool = False) -> lmdb.Transaction:
        environment = self._live()
        try:
            return environment.begin(write=write)
        except lmdb.MapResizedError:  # another process has grown the file
            environment.set_mapsize(0)
            return environment.begin(write=write)

    def _chunk(self, table: str, start: bytes) -> list[tuple[bytes, bytes]]:
        if table not in self._tables:
            return []
        with self._reading() as transaction:
            cursor = transaction.cursor(self._tables[table])
            has_entries = cursor.set_range(start) if start else cursor.first()
            chunk = list(islice(cursor, _CHUNK_LENGTH)) if has_entries else []
        if chunk and chunk[-1][0] < start:  # a damaged tree could lead in circles
            raise IntegrityError(datafile.LABEL, f"the keys of {table} are out of order")
        return chunk

    def _try(self, changes: Sequence[Put]) -> bool:
        """Try to make the changes. Return False if the map was too small for them."""
        try:
            self._make_tables({change.table for change in changes})
            with self._begin(write=True) as transaction:
                for change in changes:
                    self._apply(transaction, change)
            return True
        except lmdb.MapFullError:
            return False

    def _apply(self, transaction: lmdb.Transaction, change: Put) -> None:
        table = self._tables[change.table]
        if change.payload is None:
            transaction.delete(change.key, db=table)
            return
        value = wrap(change.table, change.key, change.payload)
        if not transaction.put(change.key, value, overwrite=not change.once, db=table):
            raise IntegrityError(label(change.table, change.key), "is there already")

    def _grow(self) -> None:
        environment = self._live()
        size = 2 * environment.info()["map_size"]
        if size > MAP_SIZE_MAX_BYTES:
            raise StoreFull(self.folder, "the journal is at its largest size")
        environment.set_mapsize(size)

    def _make_room(self, changes: Sequence[Put]) -> None:
        """Make the file longer than the transaction can use.

        LMDB leaves out pages at the end that it took and gave back within one transaction. They are
        never read, but a file without them looks like one that was cut off. The added bytes are a
        hole, which takes no room on the disk; the transaction's own sync makes them last.
        """
        transaction_bytes = sum(_TREE_BYTES + 2 * len(change.payload or b"") for change in changes)
        length_min = self._used() + SPARE_BYTES // 2 + transaction_bytes
        data_file = self.folder / "data.mdb"
        if data_file.stat().st_size < length_min:
            os.truncate(data_file, length_min + SPARE_BYTES // 2)

    def _fill(self) -> None:
        """Lengthen the file to the length in its meta page, if the room was not enough."""
        data_file = self.folder / "data.mdb"
        if data_file.stat().st_size < self._used():
            os.truncate(data_file, self._used())

    def _used(self) -> int:
        """Return the bytes of the file up to its last page, as its meta page says."""
        info = self._live().info()
        return int((info["last_pgno"] + 1) * self._live().stat()["psize"])

    # -- faults

    @contextmanager
    def _read_faults(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            raise self._fault(error) from error

    @contextmanager
    def _write_faults(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            fault = self._fault(error)
            self.close()
            raise fault from error

    def _fault(self, error: lmdb.Error | OSError) -> StoreError:
        code = error.errno if isinstance(error, OSError) else error.code
        if code in errors.FULL or (code == errno.EIO and self._is_out_of_room()):
            return StoreFull(self.folder, str(error))
        if code in errors.FORBIDDEN or isinstance(error, lmdb.ReadonlyError | lmdb.LockError):
            return StoreError(f"{self.folder} can't be opened: {error}; check its permissions")
        if isinstance(error, OSError | lmdb.DiskError | lmdb.PanicError) or code == errno.EIO:
            return StorageFault(self.folder, str(error))
        if isinstance(error, lmdb.MemoryError) or code == errno.ENOMEM:
            return StoreError(f"{self.folder} can't be mapped: {error}; raise the memory limit")
        if isinstance(error, lmdb.ReadersFullError):
            return StoreError(f"{self.folder} has too many readers: {error}; close some")
        return IntegrityError(datafile.LABEL, str(error))

    def _is_out_of_room(self) -> bool:
        """Tell whether a failed write met a full disk or a file limit. LMDB says EIO for short
        writes."""
        try:
            disk = os.statvfs(self.folder)
            length = (self.folder / "data.mdb").stat().st_size
        except OSError:  # it is not there, or can't even be asked
            return False
        file_max, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        is_at_limit = file_max != resource.RLIM_INFINITY and length + ROOM_MIN_BYTES > file_max
        return disk.f_bavail * disk.f_frsize < ROOM_MIN_BYTES or is_at_limit


def wrap(table: str, key: bytes, payload: bytes) -> bytes:
    """Return the value on disk: a checksum over place and payload, then the payload."""
    return _checksum(table, key, payload) + payload


def unwrap(table: str, key: bytes, value: bytes) -> bytes:
    """Return the payload of a value. Raises IntegrityError naming the entry."""
    checksum, payload = value[:_CHECKSUM_LENGTH], value[_CHECKSUM_LENGTH:]
    if checksum != _checksum(table, key, payload):
        raise IntegrityError(label(table, key), "its bytes are not those that were written")
    return payload


def _checksum(table: str, key: bytes, payload: bytes) -> bytes:
    place = b"%s\0%d\0%s" % (table.encode("ascii"), len(key), key)
    return hashlib.sha256(place + payload).digest()[:_CHECKSUM_LENGTH]
