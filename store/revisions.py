"""Revisions, the drafts from which they are made, and the grammar of their names.

Knows the shape of the record and the grammar of names; leaves looking names up to `history`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from store import canonical
from store.blobs import BlobRef
from store.errors import StoreError, UnknownRevision

if TYPE_CHECKING:
    from concurrent.futures import Future

    from torch import Tensor

JsonObject = dict[str, Any]  # a JSON object

STEPS_BACK_MAX = 10**9
_KINDS: Mapping[str, tuple[type, ...]] = {
    "seq": (int,),
    "previous": (str, type(None)),
    "parent": (str, type(None)),
    "operation": (str,),
    "fingerprint": (str,),
    "body": (dict,),
}
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_STEP_BACK = re.compile(r"~([0-9]{0,9})")
_STEPS_BACK = re.compile(r"(~[0-9]{0,9})*")


@dataclass(frozen=True)
class Revision:
    """One entry of the history. Its id is the digest of all the rest."""

    id: str
    seq: int
    previous: str | None  # the entry with seq - 1: the chain that makes a changed past show
    parent: str | None  # the revision whose state this one builds on
    operation: str
    patch: BlobRef | None
    fingerprint: str
    body: JsonObject = field(compare=False, repr=False)
    # By earlier revisions' ids: the blobs that replace their patches from here on; None drops one.
    replaces: Mapping[str, BlobRef | None] = field(default_factory=dict, compare=False, repr=False)

    pictures: tuple[BlobRef, ...] = field(default=(), compare=False, repr=False)
    """The pictures that its requests and probes show, for the first time perhaps."""

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """All patches that this revision needs."""
        return tuple(ref for ref in (self.patch, *self.replaces.values()) if ref is not None)

    @classmethod
    def from_payload(cls, payload: bytes) -> Revision:
        """Read a journal payload. Raises ValueError if it is not a revision's record."""
        record = canonical.loads(payload)
        try:
            _require_types(record)
            refs = record.get("replaces", {})
            return cls(
                id=canonical.digest(payload),
                seq=record["seq"],
                previous=record["previous"],
                parent=record["parent"],
                operation=record["operation"],
                patch=_blob_ref(record["patch"]),
                fingerprint=record["fingerprint"],
                body=record["body"],
                replaces={identity: _blob_ref(ref) for identity, ref in refs.items()},
                pictures=tuple(map(_known_ref, record.get("pictures", ()))),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the record of a revision ({error})") from error


@dataclass(frozen=True)
class Layer:
    """The patch that one revision contributes to a state. The state is base and all its layers."""

    revision: Revision
    patch: BlobRef | None  # its own, or its replacement; None where nothing is left
    is_waypoint: bool  # whether base and the layers up to here are this revision's own state


def layers(lineage: Sequence[Revision]) -> list[Layer]:
    """Return the layers of the last revision of a lineage (base first), each in its old place."""
    patches = {revision.id: revision.patch for revision in lineage}
    for revision in lineage:
        patches.update(revision.replaces)
    places = {revision.id: place for place, revision in enumerate(lineage)}
    stack: list[Layer] = []
    untouched_end = len(lineage)  # no later revision replaces a patch before this place
    for place in range(len(lineage) - 1, -1, -1):
        revision = lineage[place]
        stack.append(Layer(revision, patches[revision.id], place < untouched_end))
        for identity in revision.replaces:
            untouched_end = min(untouched_end, places.get(identity, untouched_end))
    return stack[::-1]


@dataclass(frozen=True)
class Replacement:
    """A patch that is to stand in an earlier one's place."""

    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Draft:
    """A revision to be: everything that `Store.commit` makes durable in one piece.

    `requests` maps request ids to records, `subjects` maps some of these ids to the key of the
    subject they are about, `streams` maps stream names to their new state (None forgets one). The
    patch is given as `tensors`, or as the `written` that `Store.write_ahead` answered with.
    `ledger` is the revision's record in the ledger, if there is one by now. `head` is the id of the
    revision that head moves to; None means the new one. `replaces` maps ids of the new revision's
    ancestors to the replacements of their patches from here on (None drops a patch). `pictures` are
    the digests of pictures that `Store.keep_picture` has written.
    """

    operation: str
    parent: str | None  # None for base only
    fingerprint: str
    body: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] | None = None
    written: Future[BlobRef] | None = None
    patch_meta: Mapping[str, Any] = field(default_factory=dict)
    requests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    subjects: Mapping[str, str] = field(default_factory=dict)
    streams: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    ledger: Mapping[str, Any] | None = None
    head: str | None = None
    replaces: Mapping[str, Replacement | None] = field(default_factory=dict)
    pictures: Sequence[str] = ()


class Name(NamedTuple):
    """A parsed name: where to start and how many parents to go back."""

    stem: str
    back: int


def payload_of(
    draft: Draft,
    seq: int,
    previous: str | None,
    patch: BlobRef | None,
    replaces: Mapping[str, BlobRef | None] = MappingProxyType({}),
    pictures: Sequence[BlobRef] = (),
) -> bytes:
    """Return a revision's bytes in the journal. Their digest is its id.

    `patch`, `replaces` and `pictures` are the blobs of the draft, which are on the disk by now.
    """
    records = {identity: _blob_record(ref) for identity, ref in replaces.items()}
    return canonical.dumps(
        {
            **({"replaces": records} if records else {}),
            **({"pictures": [_blob_record(ref) for ref in pictures]} if pictures else {}),
            "seq": seq,
            "previous": previous,
            "parent": draft.parent,
            "operation": draft.operation,
            "patch": _blob_record(patch),
            "fingerprint": draft.fingerprint,
            "body": dict(draft.body),
        }
    )


def _require_types(record: Any) -> None:
    """Raise TypeError if `record` is not a revision's record, however well its checksum fits."""
    for name, kinds in _KINDS.items():
        if not isinstance(record[name], kinds):
            raise TypeError(f"its {name} is a {type(record[name]).__name__}")


def _blob_ref(record: Mapping[str, Any] | None) -> BlobRef | None:
    if record is None:
        return None
    sha256, length = record["sha256"], record["length"]
    if not (isinstance(sha256, str) and isinstance(length, int)):
        raise TypeError("it names no blob")
    return BlobRef(sha256, length)


def _known_ref(record: Mapping[str, Any]) -> BlobRef:
    ref = _blob_ref(record)
    if ref is None:
        raise TypeError("it names no picture")
    return ref


def _blob_record(ref: BlobRef | None) -> JsonObject | None:
    return None if ref is None else asdict(ref)


def parse_name(text: str) -> Name:
    """Parse a name: `head~3` is Name("head", 3). Each `~` counts, alone for one; they add up."""
    stem, tilde, rest = text.strip().partition("~")
    steps = tilde + rest
    if not stem or not _STEPS_BACK.fullmatch(steps):
        raise UnknownRevision(text, "not a name such as head, head~2, base, @7, a tag or an id")
    total = sum(int(count or "1") for count in _STEP_BACK.findall(steps))
    return Name(stem, min(total, STEPS_BACK_MAX))


def parse_range(text: str) -> tuple[str, str]:
    """Split `A..B` into (A, B); a missing A is base, a missing B head. Raises UnknownRevision."""
    start, dots, end = text.partition("..")
    if not dots:
        raise UnknownRevision(text, "not a range such as A..B")
    return start or "base", end or "head"


def require_tag(tag: str) -> str:
    """Return a well-formed tag. Raises StoreError for one that could be taken for another name."""
    if not _TAG.fullmatch(tag) or ".." in tag or tag.endswith("."):
        raise StoreError(
            f"{tag!r} can't be a tag: use up to 64 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit, without '..'"
        )
    if tag.lower() in ("head", "base"):
        raise StoreError(f"{tag!r} can't be a tag: the name is taken")
    return tag
