"""The outcomes of the corrections: in force, broken now, mended, failed, superseded, reverted.

Follows the outcomes of the edits' own prompts through the ledger's transitions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from continual.errors import CeditError
from continual.picture_marks import digests_in
from continual.pictures.album import PICTURE
from continual.pictures.content import data_uri
from continual.prompts import shown_prompt
from continual.recheck.retention import (
    APPLIED,
    ATTEMPTED,
    SUPERSEDED,
    Outcome,
    Retention,
    count_outcomes,
    reverted_by,
)
from continual.reporting.beginnings import beginning, spelling
from continual.reporting.walk import Visit
from continual.requests import FORMS
from continual.settings import StoreSettings
from store import Store, operations

EDIT = "edit"  # the role of an edit's own prompt, as in `recheck.ledger`, which needs torch
COUNTED = ("attempted", "applied", "skipped", "superseded", "failed")


@dataclass(frozen=True)
class CorrectionText:
    """The parts of a correction that people are shown."""

    id: str
    prompt: str
    target_new: str
    target_old: str | None = None
    thumbnails: tuple[str, ...] = ()  # of the pictures that the prompt shows, as data URIs


@dataclass(frozen=True)
class InForce:
    """A correction that the model at head has."""

    request: CorrectionText
    editor: str | None
    seq: int  # of the revision that has its latest edit
    at: str | None  # time of that edit's measurement, ISO 8601
    began: str | None  # first token of the model's answer before the edit, where it is recorded


@dataclass(frozen=True)
class Broken:
    """An applied edit whose prompt is answered wrongly at head."""

    request: CorrectionText
    editor: str | None
    applied_seq: int
    since_seq: int


@dataclass(frozen=True)
class Repaired:
    """An applied edit that a later step broke, and that is right at head."""

    request: CorrectionText
    broke_seq: int
    mended_seq: int
    by: str  # repair, revert, applied again, a later step


@dataclass(frozen=True)
class Failed:
    """A correction that no editor got right, and that counts as failed at head."""

    request: CorrectionText
    seq: int
    reason: str | None


@dataclass(frozen=True)
class Superseded:
    """A correction that a later one on the same fact replaced."""

    request: CorrectionText
    seq: int
    by: CorrectionText | None  # None if another one of its own batch replaced it


@dataclass(frozen=True)
class RevertedCorrection:
    """A correction that was taken out of the history."""

    request: CorrectionText
    seq: int


@dataclass(frozen=True)
class Quarantined:
    """A record of a stream that is no request. All of the file's are listed, wherever head is."""

    stream: str | None
    line: int | None
    reason: str
    raw: str


@dataclass(frozen=True)
class Corrections:
    """The outcomes of all corrections, at head."""

    counts: Mapping[str, int]  # attempted, applied, skipped, superseded, failed on the way to head
    wrong: Mapping[str, int]  # wrong probes at head, by role; in force only
    wrong_failed: int  # own prompts among the wrong ones whose corrections failed
    in_force: tuple[InForce, ...]  # the latest edit first
    broken: tuple[Broken, ...]
    repaired: tuple[Repaired, ...]
    failed: tuple[Failed, ...]
    superseded: tuple[Superseded, ...]
    reverted: tuple[RevertedCorrection, ...]
    quarantined: tuple[Quarantined, ...]


def corrections(store: Store, visits: Sequence[Visit], kept: Retention) -> Corrections:
    """Fold a lineage whose retention set at its end is `kept`."""
    trail = _Trail()
    for visit in visits:
        trail.follow(visit)
    ask = _Asking(store)
    model = StoreSettings.of(store.settings).model.path
    return Corrections(
        counts=_counts(visits),
        wrong=trail.wrong_by_role({*kept.requests, *store.base.body.get("probes", {})}),
        wrong_failed=trail.wrong_by_role(
            identity for identity, retained in kept.requests.items() if not retained.applied
        ).get(EDIT, 0),
        in_force=tuple(_in_force(trail, visits, kept, ask, model)),
        broken=tuple(_broken(trail, kept, ask)),
        repaired=tuple(_repaired(trail, kept, ask)),
        failed=tuple(_failed(trail, kept, ask)),
        superseded=tuple(
            Superseded(ask(predecessor), seq, None if successor is None else ask(successor))
            for predecessor, successor, seq in trail.superseded
        ),
        reverted=tuple(
            RevertedCorrection(ask(identity), visit.seq)
            for visit in visits
            for identity in reverted_by(visit.revision.body)
        ),
        quarantined=tuple(map(_quarantined, store.quarantined())),
    )


@dataclass
class _Trail:
    """The state of the outcomes and the ledger up to some revision."""

    latest: dict[str, tuple[Outcome, int]] = field(default_factory=dict)  # with its entry's number
    wrong: dict[str, int] = field(default_factory=dict)  # since which entry, by the probe's key
    broke: dict[str, int] = field(default_factory=dict)  # since which entry, by the request's id
    mended: dict[str, tuple[int, int, str]] = field(default_factory=dict)  # broke, mended, cause
    superseded: list[tuple[str, str | None, int]] = field(default_factory=list)

    def follow(self, visit: Visit) -> None:
        """Go on by one revision."""
        outcomes = {outcome.id: outcome for outcome in visit.standing}
        for outcome in outcomes.values():
            if outcome.outcome in ATTEMPTED:
                self.latest[outcome.id] = (outcome, visit.seq)
            elif outcome.outcome == SUPERSEDED:
                self.superseded.append((outcome.id, None, visit.seq))
            self.superseded += [
                (predecessor, outcome.id, visit.seq) for predecessor in outcome.supersedes
            ]
        for key, is_right in visit.ledger.get("turned", {}).items():
            if is_right:
                self.wrong.pop(key, None)
            else:
                self.wrong[key] = visit.seq
            owner, role, _ = key.rsplit(":", 2)
            if role == EDIT and owner in self.latest:
                self._turned(owner, is_right, visit, outcomes.get(owner))

    def _turned(self, owner: str, right: bool, visit: Visit, outcome: Outcome | None) -> None:
        """Follow a turn of an edit's own prompt. An edit that was never right cannot break."""
        if not right:
            if self.latest[owner][0].outcome == APPLIED:
                self.broke.setdefault(owner, visit.seq)
        elif owner in self.broke and self.edit_wrong_since(owner) is None:
            self.mended[owner] = (self.broke.pop(owner), visit.seq, _by(visit, outcome))

    def edit_wrong_since(self, owner: str) -> int | None:
        """Return the entry since which an edit's own prompt is wrong in one of its forms, or
        None."""
        keys = (f"{owner}:{EDIT}:{index}" for index in range(len(FORMS)))
        return min((self.wrong[key] for key in keys if key in self.wrong), default=None)

    def wrong_by_role(self, owners: Iterable[str]) -> dict[str, int]:
        """Count the probes of these owners that are wrong now, by role."""
        owner_ids = set(owners)
        parts = (key.rsplit(":", 2) for key in self.wrong)
        return dict(sorted(Counter(role for owner, role, _ in parts if owner in owner_ids).items()))


THUMBNAILS_MAX = 500
"""Pictures that one report draws; further ones are named alone."""
THUMBNAIL_SIDE = 64  # pixels


class _Asking:
    """The texts of requests by id, each read once, with thumbnails of their pictures."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, CorrectionText] = {}
        self._drawn: dict[str, str | None] = {}  # by digest

    def __call__(self, identity: str) -> CorrectionText:
        if identity not in self._known:
            record = self._store.request(identity)
            self._known[identity] = CorrectionText(
                identity,
                shown_prompt(record),
                record["target_new"],
                record.get("target_old"),
                tuple(self._thumbnails(record)),
            )
        return self._known[identity]

    def _thumbnails(self, record: Mapping[str, Any]) -> Iterator[str]:
        texts = [record.get("prompt", ""), *(m["content"] for m in record.get("messages", ()))]
        for digest in (d for text in texts for d in digests_in(text)):
            if digest not in self._drawn and len(self._drawn) < THUMBNAILS_MAX:
                self._drawn[digest] = self._thumbnail(digest)
            if (drawn := self._drawn.get(digest)) is not None:
                yield drawn

    def _thumbnail(self, digest: str) -> str | None:
        """Draw a picture small; None for one that is lost, or cannot be drawn here."""
        try:
            return data_uri(self._store.picture(digest)[PICTURE], THUMBNAIL_SIDE)
        except CeditError:
            return None


def _by(visit: Visit, outcome: Outcome | None) -> str:
    """Return the cause that mended an edit: revert, a later step, repair, or applied again."""
    if visit.revision.operation == operations.REVERT:
        return operations.REVERT
    if outcome is None:
        return "a later step"
    return "repair" if outcome.repair else "applied again"


def _counts(visits: Iterable[Visit]) -> dict[str, int]:
    total: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
    for visit in visits:
        total.update(count_outcomes(visit.outcomes))
    return {name: total[name] for name in COUNTED}


def _in_force(
    trail: _Trail, visits: Sequence[Visit], kept: Retention, ask: _Asking, model: str
) -> Iterator[InForce]:
    """Yield the corrections in force, the latest edit first; `model` is the base's name."""
    times = {visit.seq: visit.at for visit in visits}
    spell = spelling(model)
    for identity, retained in reversed(kept.requests.items()):
        if retained.applied and identity in trail.latest:
            outcome, seq = trail.latest[identity]
            began = beginning(retained, spell)
            yield InForce(ask(identity), outcome.editor, seq, times[seq], began)


def _broken(trail: _Trail, kept: Retention, ask: _Asking) -> Iterator[Broken]:
    for identity, retained in kept.requests.items():
        since = trail.edit_wrong_since(identity)
        if retained.applied and since is not None and identity in trail.latest:
            outcome, seq = trail.latest[identity]
            yield Broken(ask(identity), outcome.editor, seq, since)


def _repaired(trail: _Trail, kept: Retention, ask: _Asking) -> Iterator[Repaired]:
    for identity, (broken_at, mended_at, by) in trail.mended.items():
        retained = kept.requests.get(identity)
        is_right = trail.edit_wrong_since(identity) is None
        if retained is not None and retained.applied and is_right:
            yield Repaired(ask(identity), broken_at, mended_at, by)


def _failed(trail: _Trail, kept: Retention, ask: _Asking) -> Iterator[Failed]:
    for identity, retained in kept.requests.items():
        if not retained.applied and identity in trail.latest:
            outcome, seq = trail.latest[identity]
            yield Failed(ask(identity), seq, outcome.reason)


def _quarantined(record: Mapping[str, Any]) -> Quarantined:
    """Read a record of the quarantine file. People may have changed it: any field may be
    missing."""
    line, stream = record.get("line"), record.get("stream")
    raw = record.get("raw", record.get("raw_base64", ""))
    return Quarantined(
        stream=None if stream is None else str(stream),
        line=line if isinstance(line, int) else None,
        reason=str(record.get("reason", "")),
        raw=str(raw),
    )
