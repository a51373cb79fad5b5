"""The history as the journal holds it: revisions by number, id and name, and the records of each.

Knows which record stands in which table under which key; leaves the order of writes, blobs and
files to `store`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

from store import canonical
from store.errors import AmbiguousRevision, IntegrityError, StoreError, UnknownRevision
from store.journal import Journal, Put, label, seq_key, text_key
from store.revisions import Draft, JsonObject, Revision, parse_name

PREFIX_LENGTH_MIN = 4  # hexadecimal digits
TAG_PREFIX = "tag/"
_ANCESTRY_CHUNK = 256  # entries read at once on the way to base
_AMBIGUOUS_MAX = 5  # candidates that a message names
_SEQ = re.compile(r"@([0-9]{1,18})")
_HEX = re.compile(rf"[0-9a-f]{{{PREFIX_LENGTH_MIN},64}}")

ValueKind = TypeVar("ValueKind")


class History:
    """A reader of the journal, and the maker of the changes that a commit puts into it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    # -- revisions

    @property
    def length(self) -> int:
        """The number of entries, base included."""
        key = self._journal.last_key("revisions")
        return 0 if key is None else int.from_bytes(key, "big") + 1

    @property
    def head(self) -> Revision:
        """The revision that head points to."""
        return self.by_id(self.head_id)

    @property
    def head_id(self) -> str:
        """The id of the revision that head points to."""
        return self._ref("head")

    def at(self, seq: int) -> Revision:
        """Return the entry with this sequence number. Raises IntegrityError if it is not there."""
        key = seq_key(seq)
        payload = self._journal.get("revisions", key)
        if payload is None:
            raise IntegrityError(label("revisions", key), "is missing")
        return as_revision(key, payload)

    def by_id(self, identity: str) -> Revision:
        """Return the revision with this full id. Raises IntegrityError if it is not there."""
        revision = self.at(self._seq_of(identity))
        if revision.id != identity:
            raise IntegrityError(f"journal/ids/{identity}", f"leads to entry {revision.seq}")
        return revision

    def has(self, identity: str) -> bool:
        """Tell whether there is a revision with this full id."""
        return self._journal.get("ids", identity.encode("utf-8", "replace")) is not None

    def entries(self, first_seq: int = 0) -> Iterator[Revision]:
        """Yield the entries in the order in which they were made."""
        for key, payload in self._journal.entries("revisions", seq_key(first_seq)):
            yield as_revision(key, payload)

    def ancestry(self, revision: Revision) -> Iterator[Revision]:
        """Yield the revision, its parent, and so on to base."""
        reader = _Below(self)
        yield revision
        while revision.parent is not None:
            revision = self._parent(revision, reader.at)
            yield revision

    def lineage(self, revision: Revision) -> list[Revision]:
        """Return base … revision along the parents, oldest first."""
        return list(self.ancestry(revision))[::-1]

    def between(self, older: Revision, newer: Revision) -> list[Revision]:
        """Return the ancestry of `newer` without that of `older`, oldest first."""
        older_ids = {revision.id for revision in self.ancestry(older)}
        revisions: list[Revision] = []
        for revision in self.ancestry(newer):
            if revision.id in older_ids:
                break
            revisions.append(revision)
        return revisions[::-1]

    def _parent(self, revision: Revision, at: Callable[[int], Revision] | None = None) -> Revision:
        if revision.parent is None:
            raise UnknownRevision(f"{revision.id[:12]}~1", "base has no parent")
        if revision.parent == revision.previous:  # the usual case needs no look at the ids
            parent = (at or self.at)(revision.seq - 1)
        else:
            parent = self.by_id(revision.parent)
        if parent.id != revision.parent or parent.seq >= revision.seq:
            raise IntegrityError(
                label("revisions", seq_key(revision.seq)), "its parent is not before it"
            )
        return parent

    def _seq_of(self, identity: str) -> int:
        payload = self._journal.get("ids", identity.encode("ascii", "replace"))
        if payload is None:
            raise IntegrityError(f"journal/ids/{identity}", "is missing")
        return parsed(label("ids", identity.encode("ascii")), payload, int)

    # -- names

    def resolve(self, name: str | Revision) -> Revision:
        """Return the revision that goes by a name. Raises UnknownRevision, AmbiguousRevision."""
        if isinstance(name, Revision):
            return name
        stem, steps = parse_name(name)
        revision = self._stem(stem)
        for _ in range(steps):
            if revision.parent is None:
                raise UnknownRevision(name, "goes back past base")
            revision = self._parent(revision)
        return revision

    def tags(self) -> dict[str, str]:
        """Return the revision ids by tag."""
        prefix = text_key(TAG_PREFIX)
        tags: dict[str, str] = {}
        for key, payload in self._journal.entries("refs", prefix):
            if not key.startswith(prefix):
                break
            tags[key[len(prefix) :].decode("utf-8")] = parsed(label("refs", key), payload, str)
        return tags

    def _stem(self, stem: str) -> Revision:
        if stem in ("head", "HEAD"):
            return self.head
        if stem == "base":
            return self.at(0)
        if match := _SEQ.fullmatch(stem):
            return self._numbered(int(match[1]))
        payload = self._journal.get("refs", text_key(TAG_PREFIX + stem))
        if payload is not None:
            return self.by_id(parsed(f"journal/refs/{TAG_PREFIX}{stem}", payload, str))
        return self._by_prefix(stem)

    def _numbered(self, seq: int) -> Revision:
        if seq >= self.length:
            raise UnknownRevision(f"@{seq}", f"the last revision is @{self.length - 1}")
        return self.at(seq)

    def _by_prefix(self, stem: str) -> Revision:
        prefix = stem.lower()
        candidates = self._ids_from(prefix) if _HEX.fullmatch(prefix) else []
        if not candidates and stem.isdecimal():
            raise UnknownRevision(stem, f"no id begins so; entry {stem} of the journal is @{stem}")
        if not candidates:
            raise UnknownRevision(stem)
        if len(candidates) > 1:
            raise AmbiguousRevision(stem, candidates)
        return self.by_id(candidates[0])

    def _ids_from(self, prefix: str) -> list[str]:
        start = prefix.encode("ascii")
        identities: list[str] = []
        for key, _ in self._journal.entries("ids", start):
            if not key.startswith(start) or len(identities) == _AMBIGUOUS_MAX:
                break
            identities.append(key.decode("ascii"))
        return identities

    def _ref(self, name: str) -> str:
        payload = self._journal.get("refs", text_key(name))
        if payload is None:
            raise IntegrityError(f"journal/refs/{name}", "is missing")
        return parsed(f"journal/refs/{name}", payload, str)

    # -- requests, ledger, streams

    def request(self, identity: str) -> JsonObject | None:
        """Return {"seq", "subject", "record"} of a request, or None for an unknown id."""
        return self._object("requests", text_key(identity))

    def requests_about(self, subject: str) -> list[str]:
        """Return the ids of the requests about a subject, in the order in which they were made."""
        prefix = subject_digest(subject)
        identities: list[str] = []
        for key, payload in self._journal.entries("subjects", prefix):
            if not key.startswith(prefix):
                break
            identities.append(parsed(label("subjects", key), payload, dict)["request"])
        return identities

    def ledger(self, seq: int) -> JsonObject | None:
        """Return the ledger's record for an entry, or None if there is none."""
        return self._object("ledger", seq_key(seq)) if seq >= 0 else None

    def stream(self, name: str) -> JsonObject | None:
        """Return the state of a stream, or None if there is none."""
        entry = self._object("streams", text_key(name))
        return None if entry is None else entry["record"]

    def streams(self) -> dict[str, JsonObject]:
        """Return the states of all streams by name."""
        entries = (
            parsed(label("streams", key), payload, dict)
            for key, payload in self._journal.entries("streams")
        )
        return {entry["name"]: entry["record"] for entry in entries}

    def queue_entry(self, name: str) -> JsonObject | None:
        """Return the record of the queue under a name, or None."""
        entry = self._object("queue", text_key(name))
        return None if entry is None else entry["record"]

    def queue_entries(self, prefix: str = "") -> Iterator[tuple[str, JsonObject]]:
        """Yield the names of the queue that begin so, in their order, with their records."""
        start = text_key(prefix)
        for key, payload in self._journal.entries("queue", start):
            if not key.startswith(start):
                break
            entry = parsed(label("queue", key), payload, dict)
            yield entry["name"], entry["record"]

    def _object(self, table: str, key: bytes) -> JsonObject | None:
        payload = self._journal.get(table, key)
        return None if payload is None else parsed(label(table, key), payload, dict)

    # -- changes

    def changes(self, draft: Draft, revision: Revision, payload: bytes) -> list[Put]:
        """Return all changes that a commit makes to the journal, for one transaction."""
        return [
            Put("revisions", seq_key(revision.seq), payload, once=True),
            Put("ids", revision.id.encode("ascii"), canonical.dumps(revision.seq), once=True),
            point("head", draft.head or revision.id),
            *self._request_changes(draft, revision.seq),
            *(stream_entry(name, record) for name, record in draft.streams.items()),
            *([] if draft.ledger is None else [ledger_entry(revision.seq, draft.ledger)]),
        ]

    def _request_changes(self, draft: Draft, seq: int) -> Iterator[Put]:
        for index, (identity, record) in enumerate(draft.requests.items()):
            if self.request(identity) is not None:
                continue
            subject = draft.subjects.get(identity)
            entry = {"id": identity, "seq": seq, "subject": subject, "record": dict(record)}
            yield Put("requests", text_key(identity), canonical.dumps(entry), once=True)
            if subject is not None:
                key = subject_key(subject, seq, index)
                payload = canonical.dumps({"subject": subject, "request": identity})
                yield Put("subjects", key, payload, once=True)

    def require_fitting(self, draft: Draft) -> None:
        """Raise StoreError for a draft that names missing entries or would change existing ones."""
        for role, identity in (("parent", draft.parent), ("head", draft.head)):
            if identity is not None and not self.has(identity):
                raise StoreError(f"the draft's {role} {identity!r} is no revision of this store")
        if draft.parent is None:
            raise StoreError("the draft has no parent: only base stands alone")
        if draft.replaces:
            ancestors = {revision.id for revision in self.ancestry(self.by_id(draft.parent))}
            if strangers := set(draft.replaces) - ancestors:
                raise StoreError(
                    f"the draft replaces patches of {sorted(strangers)}, which are not among its "
                    "ancestors"
                )
        if strays := set(draft.subjects) - set(draft.requests):
            raise StoreError(f"the draft gives subjects for requests it lacks: {sorted(strays)}")
        for identity, record in draft.requests.items():
            entry = self.request(identity)
            if entry and canonical.dumps(entry["record"]) != canonical.dumps(dict(record)):
                raise StoreError(
                    f"request {identity!r} is recorded with other content: "
                    "derive ids from content, so that other content has another id"
                )


class _Below:
    """Entries in falling order, some hundreds read at once."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._read: dict[int, Revision] = {}

    def at(self, seq: int) -> Revision:
        """See `History.at`."""
        if seq not in self._read:
            start = max(0, seq + 1 - _ANCESTRY_CHUNK)
            entries = islice(self._history.entries(start), seq + 1 - start)
            try:
                self._read = {revision.seq: revision for revision in entries}
            except IntegrityError:  # the damaged entry may be no ancestor
                self._read = {}
        return self._read.get(seq) or self._history.at(seq)


def point(ref: str, identity: str) -> Put:
    """Return the change that points a ref (head, or a tag with its prefix) to a revision."""
    return Put("refs", text_key(ref), canonical.dumps(identity))


def ledger_entry(seq: int, record: Mapping[str, Any]) -> Put:
    """Return the change that sets the ledger's record for the revision with this number."""
    return Put("ledger", seq_key(seq), canonical.dumps(dict(record)))


def subject_digest(subject: str) -> bytes:
    """Return the common beginning of all keys of a subject."""
    return hashlib.sha256(subject.encode("utf-8", "surrogatepass")).digest()


def subject_key(subject: str, seq: int, index: int) -> bytes:
    """Return the key of a request about a subject. Keys of one subject stand together, in the order
    in which its requests were made."""
    return subject_digest(subject) + seq_key(seq) + index.to_bytes(4, "big")


def as_revision(key: bytes, payload: bytes) -> Revision:
    """Read an entry of `revisions`. Raises IntegrityError naming it."""
    try:
        revision = Revision.from_payload(payload)
    except ValueError as error:
        raise IntegrityError(label("revisions", key), str(error)) from error
    if revision.seq != int.from_bytes(key, "big"):
        raise IntegrityError(label("revisions", key), f"holds entry {revision.seq}")
    return revision


def parsed(name: str, payload: bytes, kind: type[ValueKind]) -> ValueKind:
    """Return a payload's JSON value, which must be a `kind`. Raises IntegrityError naming the
    entry."""
    try:
        value = canonical.loads(payload)
    except ValueError as error:
        raise IntegrityError(name, f"is not JSON ({error})") from error
    if not isinstance(value, kind):
        raise IntegrityError(name, f"is a {type(value).__name__}, not a {kind.__name__}")
    return value


def stream_entry(name: str, record: Any) -> Put:
    """Return the change that sets a stream's state; None forgets the stream."""
    if record is None:
        return Put("streams", text_key(name), None)
    return Put("streams", text_key(name), canonical.dumps({"name": name, "record": dict(record)}))


def queue_change(name: str, record: Mapping[str, Any] | None) -> Put:
    """Return the change that sets a record of the queue; None forgets it. Raises StoreError for a
    name that is too long to stand in order."""
    key = text_key(name)
    if not key.startswith(b"="):
        raise StoreError(f"{name[:40]!r}… is too long for a name in the queue: digest it")
    if record is None:
        return Put("queue", key, None)
    return Put("queue", key, canonical.dumps({"name": name, "record": dict(record)}))
