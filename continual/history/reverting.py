"""Reverting: one request taken out of the middle of the history, which only grows by it.

A revision of operation "revert" names the request, and replaces the patches that had a part in it;
all other patches keep their order and their bytes. The requests that it had superseded count again.
An erasure of a relation, which has no request, is named by its revision, and its patch goes whole.
Nothing is lost: the request can be applied again, and a rollback leads back to the state before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from continual.effects import NOTHING, Reach, moved_blocks
from continual.errors import CeditError
from continual.history.corrections import standing_erasure, standing_request
from continual.history.inspection import rates_at, retained_at
from continual.history.rehearsing import pipeline_at, rehearse, settings_of
from continual.history.rewriting import Choice, relaid, rewrite
from continual.open_store import OpenStore
from continual.patches import Patch
from continual.recheck import retention
from continual.recheck.retention import ATTEMPTED, Outcome, outcomes_of, reverted_later
from continual.recheck.run_state import Past
from store import Draft, Layer, Revision, operations


class RevertError(CeditError):
    """The request's patch does not say which of its rows belong to which request."""


@dataclass(frozen=True)
class RevertResult:
    """The revision of a revert, with its effect on patches, metrics and probes."""

    revision: Revision
    request: str | None  # None for an erasure
    rows: dict[str, int]  # neurons, columns, records or whole dense patches removed, by kind
    resolved: tuple[Outcome, ...]  # of the other requests of batches solved again
    before: dict[str, float | None]  # the metrics
    after: dict[str, float | None]
    turned: dict[str, bool]  # probes whose outcome changed: True if right now
    relation: str | None = None  # of an erasure that was taken out


def revert(opened: OpenStore, name: str, *, resolve: bool = False) -> RevertResult:
    """Take a request out of the history at head, and measure the model without it.

    `name` is its id, or the start of it, or the revision of an erasure. Without `resolve`, the
    request's columns of a low-rank patch are dropped, and the columns of its batch's other requests
    stay as they were solved beside them; with it, the batch is solved again without the request. A
    shared patch goes whole, or not at all. Raises UnknownRequest, RevertError, SharedPatch.
    """
    store = opened.store
    head = store.head
    surgery: _Surgery | _GivingBack
    if (erasure := standing_erasure(store, name)) is not None:
        surgery = _GivingBack(opened, erasure)
    else:
        lineage = store.lineage(head)
        surgery = _Surgery(opened, standing_request(lineage, name), lineage, resolve)
    revision = rewrite(opened, surgery.operate)
    opened.settle()
    ledger = store.ledger(revision.seq) or {}
    return RevertResult(
        revision,
        surgery.request,
        surgery.rows,
        tuple(surgery.resolved.values()),
        before=rates_at(store, head),
        after=rates_at(store, revision),
        turned=dict(ledger.get("turned", {})),
        relation=revision.body.get("given_back"),
    )


@dataclass
class _GivingBack:
    """Puts the patches of a state on anew, without that of one erasure."""

    opened: OpenStore
    erasure: Revision
    rows: dict[str, int] = field(default_factory=dict)
    reach: Reach = NOTHING
    request: None = None
    resolved: dict[str, Outcome] = field(default_factory=dict)  # none: nothing is solved again

    def operate(self, layers: Sequence[Layer]) -> Draft:
        """Put all layers on but the erasure's; return the draft of the revision."""
        replaces = relaid(self.opened, layers, self._choose)
        body = {
            "given_back": self.erasure.body["relation"],
            **moved_blocks(self.reach, self.opened.site.place),
        }
        parent, fingerprint = layers[-1].revision.id, self.opened.edited.fingerprint
        return Draft(operations.REVERT, parent, fingerprint, body, replaces=replaces)

    def _choose(self, layer: Layer) -> Choice:
        """Return the parts of a layer, none of them for the erasure's own."""
        parts = self.opened.patches(layer.patch)
        if layer.revision.id != self.erasure.id:
            return parts, False
        for part in parts:
            self.rows[part.kind] = self.rows.get(part.kind, 0) + part.rows
            self.reach |= part.reach
        return (), True


@dataclass
class _Surgery:
    """Puts the patches of a state on anew, without one request."""

    opened: OpenStore
    request: str
    lineage: Sequence[Revision]
    resolve: bool
    rows: dict[str, int] = field(default_factory=dict)
    reach: Reach = NOTHING  # of the changes
    resolved: dict[str, Outcome] = field(default_factory=dict)

    def operate(self, layers: Sequence[Layer]) -> Draft:
        """Put all layers on, without the request's parts; return the draft of the revision."""
        replaces = relaid(self.opened, layers, self._choose)
        body: dict[str, Any] = {
            "reverted": [self.request],
            "requests": [outcome.to_json() for outcome in self.resolved.values()],
        }
        body |= moved_blocks(self.reach, self.opened.site.place)
        head, fingerprint = self.lineage[-1], self.opened.edited.fingerprint
        return Draft(operations.REVERT, head.id, fingerprint, body, replaces=replaces)

    def _choose(self, layer: Layer) -> Choice:
        """Return the parts of a layer without the request, and whether they replace the layer's."""
        parts = self.opened.patches(layer.patch)
        if not self._has_part(layer.revision):
            return parts, False
        parts = tuple(with_owners(part, layer.revision, parts) for part in parts)
        owned_parts = [part for part in parts if self.request in part.owners]
        if not owned_parts:
            return parts, False
        self._count(owned_parts)
        if self.resolve and layer.revision.operation == operations.CONSOLIDATE:
            raise RevertError(
                f"Revision {layer.revision.id[:12]} solved the matrix edits of many batches "
                "together: revert the request without solving again, then consolidate."
            )
        if self.resolve and any(part.reach.blocks or part.is_shared for part in owned_parts):
            return self._solve_again(layer.revision), True
        remainders = (part.without(self.request) for part in parts)
        return [part for part in remainders if part is not None], True

    @cached_property
    def _gone(self) -> dict[str, frozenset[str]]:
        """The requests of each step reverted later, by the step's id."""
        ids = (revision.id for revision in self.lineage)
        return dict(zip(ids, reverted_later(self.lineage), strict=True))

    def _has_part(self, revision: Revision) -> bool:
        """Tell whether a step attempted the request and no later revision reverted it."""
        return self.request not in self._gone[revision.id] and any(
            outcome.id == self.request and outcome.outcome in ATTEMPTED
            for outcome in outcomes_of(revision.body)
        )

    def _count(self, owned: Iterable[Patch]) -> None:
        for part in owned:
            count = part.owners.count(self.request)
            self.rows[part.kind] = self.rows.get(part.kind, 0) + count
            self.reach |= part.reach

    def _solve_again(self, revision: Revision) -> tuple[Patch, ...]:
        """Solve a step's batch again without the request, and return the parts. The model is in the
        state before the step, and stays there."""
        opened = self.opened
        parent = opened.store.revision(revision.parent or "base")
        without = self._gone[revision.id] | {self.request}
        pipeline = pipeline_at(opened, Past(parent, without), settings_of(revision))
        depth = opened.edited.depth
        edited = rehearse(opened, pipeline, revision, without)
        opened.edited.take_off(depth)
        self.reach |= edited.reach
        retained = retained_at(opened.store, self.lineage[-1]).requests
        for outcome in edited.outcomes:
            if outcome.id in retained:  # a request superseded since then stays superseded
                self.resolved[outcome.id] = replace(outcome, repair=True, supersedes=())
        return edited.parts


def with_owners(part: Patch, revision: Revision, parts: Sequence[Patch]) -> Patch:
    """Return the part with the owners of its rows. Older files do not name them: the outcomes of
    the requests tell the owners if only one assignment fits. Raises RevertError otherwise."""
    if part.owners:
        return part
    outcomes = [o for o in outcomes_of(revision.body) if o.outcome in ATTEMPTED]
    owners: list[str] = []
    if len(outcomes) == 1:
        owners = [outcomes[0].id] * part.rows
    elif len(parts) == 1:
        for outcome in outcomes:
            count = int(outcome.notes.get("neurons", "arrived" in outcome.notes))
            owners += [outcome.id] * (count if outcome.outcome == retention.APPLIED else 0)
    if len(owners) != part.rows:
        raise RevertError(
            f"The patch of revision {revision.id[:12]} was made by an older version, and does not "
            "say which part of it is whose. Roll back to before it and apply the others again."
        )
    return part.owned_by(tuple(owners))
