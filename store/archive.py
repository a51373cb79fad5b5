"""A whole history as one file: a tar of the journal's entries, the patches and the settings.

The same history gives the same bytes: members come in one order, with no times or owners. The first
member, `manifest.json`, has the length and the SHA-256 of every other. Reading trusts nothing: it
takes only regular members with the names that a store has, each as the manifest says, and the
restored store must verify. Cache and snapshots are left out, since they can be made again.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from store import canonical, check, config, durable, migrate
from store.blobs import Blobs
from store.errors import (
    FormatVersionError,
    IntegrityError,
    StoreError,
    StoreExists,
    from_os,
    reading,
)
from store.journal import LATER, TABLES, Journal, Put
from store.store import Store

FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_LENGTH_MAX = 1 << 30  # bytes
_SUFFIX = ".jsonl"
_NAME = re.compile(
    r"cedit\.toml|quarantine\.jsonl|journal/("
    + "|".join(TABLES)
    + r")\.jsonl|(?:patches|pictures)/[0-9a-f]{2}/[0-9a-f]{64}\.safetensors"
)
_LINE = re.compile(rb"((?:[0-9a-f]{2})+)\t([^\n]+)\n")
_CHUNK = 4096  # changes in a transaction
_BLOCK = 1 << 20  # bytes read at once


@dataclass(frozen=True)
class Member:
    """The manifest's entry for a member."""

    name: str
    length: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Archived:
    """The content of an archive, in numbers."""

    revisions: int
    patches: int
    head: str
    fingerprint: str
    length: int  # bytes of the file
    pictures: int = 0


# -- writing


def export(store: Store, file: Path) -> Archived:
    """Write a store's history to a new file, durably and all at once.

    Raises StoreExists, StoreFull, StorageFault, IntegrityError for a patch or record that is not as
    it was written.
    """
    with reading(file):
        if file.exists():
            raise StoreExists(file, "is there already")
        if not file.parent.is_dir():
            raise StoreError(f"{file} can't be written: there is no folder {file.parent}; make it")
    temporary = file.parent / f"{durable.TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    with store.journal.snapshot():
        members = list(_members(store))
        manifest = _manifest(store, members)
        durable.require_room(file.parent, sum(member.length for member in members))
        try:
            with temporary.open("xb") as archive:
                _write(store, archive, manifest, members)
                archive.flush()
                os.fsync(archive.fileno())
            durable.move_durably(temporary, file)
        except OSError as error:
            raise from_os(file, error) from error
        finally:
            with suppress(OSError):  # if it can't be removed, an earlier error is on its way
                temporary.unlink()
    return _archived(canonical.loads(manifest), file)


def _members(store: Store) -> Iterator[Member]:
    """Yield every member with its checksum, in order."""
    yield _member(config.FILE_NAME, [(store.path / config.FILE_NAME).read_bytes()])
    for table in _tables(store):
        yield _member(f"journal/{table}{_SUFFIX}", _lines(store, table))
    for blobs, sha256 in [*_patches(store), *_pictures(store)]:
        member = _member(blobs.label(sha256), _blocks(blobs.path(sha256)))
        if member.sha256 != sha256:
            raise IntegrityError(member.name, "its bytes are not those that were written")
        yield member
    quarantine = store.path / "quarantine.jsonl"
    if quarantine.exists():
        yield _member(quarantine.name, _blocks(quarantine))


def _tables(store: Store) -> list[str]:
    """Return the tables of a journal, without those that come later and are empty."""
    return [t for t in TABLES if t not in LATER or store.journal.last_key(t) is not None]


def _member(name: str, blocks: Iterable[bytes]) -> Member:
    digest, length = hashlib.sha256(), 0
    for block in blocks:
        digest.update(block)
        length += len(block)
    return Member(name, length, digest.hexdigest())


def _patches(store: Store) -> list[tuple[Blobs, str]]:
    digests = {ref.sha256 for revision in store.revisions() for ref in revision.blobs}
    return [(store.blobs, sha256) for sha256 in sorted(digests)]


def _pictures(store: Store) -> list[tuple[Blobs, str]]:
    """Return the pictures that revisions show, and those of the queue that are there: a record may
    name one that was never kept."""
    revised = {ref.sha256 for revision in store.revisions() for ref in revision.pictures}
    queued = store.pictures_shown() & set(store.pictures.digests())
    return [(store.pictures, sha256) for sha256 in sorted(revised | queued)]


def _lines(store: Store, table: str) -> Iterator[bytes]:
    """Yield a table's entries, a line each: the key, a tab, the payload (JSON on one line)."""
    for key, payload in store.journal.entries(table):
        yield key.hex().encode("ascii") + b"\t" + payload + b"\n"


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                yield block
    except OSError as error:
        raise IntegrityError(path.name, f"can't be read ({error.strerror})") from error


def _manifest(store: Store, members: list[Member]) -> bytes:
    return canonical.dumps(
        {
            "archive": FORMAT,
            "store": config.found_format(store.path),
            "revisions": store.length,
            "head": store.head_id,
            "fingerprint": store.head.fingerprint,
            "members": [asdict(member) for member in members],
        }
    )


def _write(store: Store, opened: IO[bytes], manifest: bytes, members: list[Member]) -> None:
    with tarfile.open(fileobj=opened, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(_entry(MANIFEST, len(manifest)), io.BytesIO(manifest))
        for member in members:
            content = _BlockFile(_content(store, member.name))
            tar.addfile(_entry(member.name, member.length), content)  # type: ignore[arg-type]


def _entry(name: str, length: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)  # no time, no owner: mode 0644 of user 0
    entry.size = length
    return entry


def _content(store: Store, name: str) -> Iterator[bytes]:
    folder, _, rest = name.partition("/")
    if folder == "journal":
        return _lines(store, rest.removesuffix(_SUFFIX))
    return _blocks(store.path / name)


class _BlockFile:
    """Blocks as a file that can be read once."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, b""

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer at the end."""
        pieces = [self._rest]
        length = len(self._rest)
        while length < size and (block := next(self._blocks, b"")):
            pieces.append(block)
            length += len(block)
        data = b"".join(pieces)
        self._rest = data[size:]
        return data[:size]


# -- reading


def restore(file: Path, path: Path, *, model: str | None = None) -> Archived:
    """Make a store from an archive: built aside, verified, and moved to `path` at once.

    `model` replaces the base model's path. Raises StoreExists, StoreFull, StorageFault,
    FormatVersionError, and IntegrityError for anything that is not as `export` writes it.
    """
    path = path.absolute()
    _require_vacant(path)
    durable.make_folder_durably(path.parent)
    temporary = path.parent / f"{durable.TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    try:
        with _damage_named(file):
            with _opened(file) as tar:
                manifest = _read_manifest(tar, file)
                members = _listed(manifest, file)
                durable.require_room(path.parent, sum(member.length for member in members))
                durable.make_folder_durably(temporary)
                _unpack(tar, members, temporary)
            if model is not None:
                _point_to(temporary, model)
            _require_sound(temporary, manifest)
        durable.move_durably(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _archived(manifest, file)


def _require_vacant(path: Path) -> None:
    with reading(path):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StoreExists(path, "is there already, and not an empty folder")


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    """Blame errors on the archive: no repair of a store mends it, so the remedy is a new export."""
    remedy = f"{file.name} is not as `cedit export` wrote it: export it again"
    try:
        yield
    except tarfile.TarError as error:
        problem = f"is a damaged archive, or none ({error})"
        raise IntegrityError(file.name, problem, remedy) from error
    except IntegrityError as error:
        raise IntegrityError(error.object, error.problem, remedy) from error


def _opened(file: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(file, mode="r:")
    except OSError as error:
        raise StoreError(f"{file} can't be read: {error.strerror or error}") from error


def _next(tar: tarfile.TarFile, expected: Member | None) -> IO[bytes] | None:
    """Return the content of the next member, which must be the expected one; None at the end."""
    entry = tar.next()
    if entry is None:
        if expected is not None:
            raise IntegrityError(expected.name, "is missing from the archive")
        return None
    name = ascii(entry.name)
    if expected is None:
        raise IntegrityError(name, "is in the archive, and not in its manifest")
    if entry.name != expected.name:
        raise IntegrityError(name, f"stands where {expected.name} should")
    if entry.type != tarfile.REGTYPE or entry.pax_headers or entry.issparse():
        raise IntegrityError(name, "is not a plain file")
    if expected.length >= 0 and entry.size != expected.length:
        raise IntegrityError(name, f"has {entry.size} bytes where {expected.length} were written")
    content = tar.extractfile(entry)
    assert content is not None
    return content


def _read_manifest(tar: tarfile.TarFile, file: Path) -> dict[str, Any]:
    content = _next(tar, Member(MANIFEST, -1, ""))
    assert content is not None
    data = content.read(MANIFEST_LENGTH_MAX + 1)
    if len(data) > MANIFEST_LENGTH_MAX:
        raise IntegrityError(MANIFEST, f"is larger than {MANIFEST_LENGTH_MAX} bytes")
    try:
        manifest = canonical.loads(data)
    except ValueError as error:
        raise IntegrityError(MANIFEST, f"is not JSON ({error})") from error
    if not isinstance(manifest, dict):
        raise IntegrityError(MANIFEST, "is not an object")
    for key, version in (("archive", FORMAT), ("store", config.FORMAT)):
        is_opened = key == "store" and config.is_opened(manifest.get(key))
        if manifest.get(key) != version and not is_opened:
            raise FormatVersionError(file, f"{key} = {manifest.get(key)}", f"{key} = {version}")
    return manifest


def _listed(manifest: Mapping[str, Any], file: Path) -> list[Member]:
    """Return the members as the manifest lists them. Together they fit into the file's length."""
    try:
        members = [Member(m["name"], m["length"], m["sha256"]) for m in manifest["members"]]
    except (KeyError, TypeError) as error:
        raise IntegrityError(MANIFEST, f"does not list its members ({error})") from error
    for member in members:
        if not isinstance(member.name, str) or not _NAME.fullmatch(member.name):
            raise IntegrityError(MANIFEST, f"lists {member.name!a}, which no store has")
        if type(member.length) is not int or member.length < 0:
            raise IntegrityError(MANIFEST, f"gives {member.name} no length")
    names = {member.name for member in members}
    if len(names) != len(members):
        raise IntegrityError(MANIFEST, "lists a member twice")
    required_tables = [table for table in TABLES if table not in LATER]
    required_names = {config.FILE_NAME, *(f"journal/{t}{_SUFFIX}" for t in required_tables)}
    if missing_names := required_names - names:
        raise IntegrityError(MANIFEST, f"lacks {', '.join(sorted(missing_names))}")
    if sum(member.length for member in members) > file.stat().st_size:
        raise IntegrityError(MANIFEST, "lists more bytes than the archive has")
    return members


def _unpack(tar: tarfile.TarFile, members: list[Member], aside: Path) -> None:
    for name in ("journal", "patches", "snapshots", "cache"):
        durable.make_folder_durably(aside / name)
    journal = Journal(aside / "journal", writable=True)
    try:
        for member in members:
            content = _next(tar, member)
            assert content is not None
            reader = _Checked(content)
            if member.name.startswith("journal/"):
                _fill(journal, member, reader)
            else:
                durable.write_durably(aside / member.name, reader.read())
            if reader.sha256 != member.sha256:
                raise IntegrityError(member.name, "its bytes are not those that were written")
        _next(tar, None)
    finally:
        journal.close()
    durable.sync_folder_durably(aside / "journal")  # LMDB does not sync the name of its file


class _Checked:
    """A member's content with the digest of all bytes read so far."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content, self._digest = content, hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The digest of the bytes read so far."""
        return self._digest.hexdigest()

    def read(self) -> bytes:
        """Return the rest of the content."""
        data = self._content.read()
        self._digest.update(data)
        return data

    def lines(self) -> Iterator[bytes]:
        """Yield the rest of the content line by line."""
        for line in self._content:
            self._digest.update(line)
            yield line


def _fill(journal: Journal, member: Member, content: _Checked) -> None:
    """Put a table's entries into the journal."""
    table = member.name.removeprefix("journal/").removesuffix(_SUFFIX)
    changes: list[Put] = []
    for number, line in enumerate(content.lines(), start=1):
        entry = _LINE.fullmatch(line)
        if entry is None or len(entry[1]) > 2 * 511:
            raise IntegrityError(f"{member.name}:{number}", "is not the line of an entry")
        changes.append(Put(table, bytes.fromhex(entry[1].decode("ascii")), entry[2], once=True))
        if len(changes) == _CHUNK:
            journal.write(changes)
            changes = []
    journal.write(changes)


def _point_to(aside: Path, model: str) -> None:
    """Let the settings name the base model's new place."""
    settings = config.read(aside)
    table = settings.get("model", {})
    if not isinstance(table, Mapping):
        raise IntegrityError(config.FILE_NAME, f"has model = {table!r}, which is no table")
    number = config.found_format(aside)
    config.write(aside, {**settings, "model": {**table, "path": model}})
    migrate.require_format(aside, number)


def _require_sound(aside: Path, manifest: Mapping[str, Any]) -> None:
    with Store.open(aside) as store:
        for problem in check.verify(store):
            raise IntegrityError(problem.object, problem.problem)
        head = store.head
        manifest_head = (
            manifest.get("head"),
            manifest.get("fingerprint"),
            manifest.get("revisions"),
        )
        if (head.id, head.fingerprint, store.length) != manifest_head:
            raise IntegrityError(MANIFEST, "names another head than the history has")


def _archived(manifest: Mapping[str, Any], file: Path) -> Archived:
    names = [member["name"] for member in manifest["members"]]
    return Archived(
        revisions=manifest["revisions"],
        patches=sum(name.startswith("patches/") for name in names),
        head=manifest["head"],
        fingerprint=manifest["fingerprint"],
        length=file.stat().st_size,
        pictures=sum(name.startswith("pictures/") for name in names),
    )
