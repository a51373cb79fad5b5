"""Consolidating: many patches of matrix edits in force become one, solved together.

Each batch of MEMIT's family is solved on the model as the one before left it, so that values
inherit drift and later updates write over earlier ones. The best sequence is the one whose sum is
the solution for all of its edits at once (OTE-SE, ICML 2026). A revision of operation "consolidate"
comes to that sum: it replaces these patches by nothing, puts the other patches on in their order,
and has one patch of its own, for which all of their requests in force are searched for and solved
in one batch. Columns of requests that were superseded go.

Nothing is committed unless all of these requests are right and no correction in force breaks, of
whatever editor. Nothing is erased: a rollback leads back to the state before. Leaves the batch to
`step`, the way there to `rewriting`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from typing import Any

from continual.effects import NOTHING, Reach, moved_blocks
from continual.errors import CeditError
from continual.history.inspection import rates_at, retained_at
from continual.history.rehearsing import pipeline_at, settings_of
from continual.history.reverting import with_owners
from continual.history.rewriting import Choice, relaid, rewrite
from continual.open_store import OpenStore
from continual.patches import Patch, pack
from continual.patches.low_rank import FfnLowRankPatch
from continual.recheck import retention
from continual.recheck.encoded_requests import encode
from continual.recheck.entries import EDIT
from continual.recheck.retention import Outcome, outcomes_of
from continual.recheck.run_state import Past, RunState
from continual.requests import Request
from continual.step.batches import Batch
from continual.step.settings import ApplySettings
from store import Draft, Layer, Revision, operations

PATCHES_MIN = 2
SHOWN_MAX = 3  # corrections that a refusal names


class CannotConsolidate(CeditError):
    """The matrix edits in force do not become one patch without a loss."""


@dataclass(frozen=True)
class ConsolidateResult:
    """The revision of a consolidation, with its effect on patches, metrics and probes."""

    revision: Revision
    editor: str
    requests: tuple[str, ...]  # solved together
    replaced: tuple[str, ...]  # the revisions whose patches went into it
    columns: tuple[int, int]  # of all their updates, before and now
    before: dict[str, float | None]  # the metrics
    after: dict[str, float | None]
    turned: dict[str, bool]  # probes whose outcome changed: True if right now


def consolidate(
    opened: OpenStore,
    editor: str | None = None,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
) -> ConsolidateResult:
    """Solve all matrix edits in force together, by the editor that made most of them unless one is
    named, with the settings of its latest step and those of `tables`, `[editor.NAME]` tables.

    Raises CannotConsolidate if there are fewer than two patches to join, and none that lost a
    request since it was solved; if a request cannot be written in one batch; or if a correction in
    force would break. The history is then as it was.
    """
    store = opened.store
    head = store.head
    joint = _JointSolve(opened, store.lineage(head), editor, tables or {})
    revision = rewrite(opened, joint.operate)
    opened.settle()
    ledger = store.ledger(revision.seq) or {}
    return ConsolidateResult(
        revision,
        joint.settings.chain[0],
        joint.requests,
        tuple(joint.replaced),
        (joint.columns, sum(part.rows for part in joint.parts)),
        before=rates_at(store, head),
        after=rates_at(store, revision),
        turned=dict(ledger.get("turned", {})),
    )


@dataclass
class _JointSolve:
    """Puts the patches of a state on anew, with all matrix edits of requests in one."""

    opened: OpenStore
    lineage: Sequence[Revision]
    editor: str | None
    tables: Mapping[str, Mapping[str, Any]]
    settings: ApplySettings = field(init=False)
    requests: tuple[str, ...] = ()
    replaced: list[str] = field(default_factory=list)
    columns: int = 0
    parts: Sequence[Patch] = ()
    reach: Reach = NOTHING  # of the changes

    def operate(self, layers: Sequence[Layer]) -> Draft:
        """Put all layers on without matrix edits, and these in one; return the draft of the
        revision."""
        opened, head = self.opened, self.lineage[-1]
        self._gather(layers)
        before = opened.run_state.ledger.outcomes()
        replaces = relaid(opened, layers, self._choose)
        outcomes = self._solve(head)
        self._require_all_right(before)
        tensors, meta = pack(self.parts)
        body: dict[str, Any] = {
            "editor": self.settings.chain[0],
            "settings": self.settings.to_json(),
            "requests": [outcome.to_json() for outcome in outcomes],
            "consolidated": list(self.replaced),
            **moved_blocks(self.reach, opened.site.place),
        }
        fingerprint = opened.edited.fingerprint
        return Draft(
            operations.CONSOLIDATE,
            head.id,
            fingerprint,
            body,
            tensors=tensors,
            patch_meta=meta,
            replaces=replaces,
        )

    # -- the matrix edits in force

    def _gather(self, layers: Sequence[Layer]) -> None:
        """Find the patches to join, their requests in force, and the settings to solve with."""
        retained = retained_at(self.opened.store, self.lineage[-1]).requests
        owners: set[str] = set()
        is_cut = False  # a request was taken out of a patch since it was solved
        for layer in layers:
            parts = self._joinable(layer)
            if parts:
                self.replaced.append(layer.revision.id)
                is_cut |= layer.patch != layer.revision.patch
                self.columns += sum(part.rows for part in parts)
                owners.update(owner for part in parts for owner in part.owners)
        self.requests = tuple(i for i, r in retained.items() if r.applied and i in owners)
        if len(self.replaced) < (1 if is_cut else PATCHES_MIN) or not self.requests:
            raise CannotConsolidate(
                f"There is nothing to consolidate: {len(self.replaced)} patches of matrix edits "
                f"are on at head, for {len(self.requests)} corrections in force. It takes "
                f"{PATCHES_MIN} patches of memit or its kin."
            )
        self.settings = self._chosen_settings()

    def _joinable(self, layer: Layer) -> list[Patch]:
        """Return the parts of a layer that are matrix edits of requests."""
        parts = self.opened.patches(layer.patch)
        chosen = [part for part in parts if part.kind == FfnLowRankPatch.kind]
        if not outcomes_of(layer.revision.body):
            return []  # no request stands behind them
        return [with_owners(part, layer.revision, parts) for part in chosen]

    def _chosen_settings(self) -> ApplySettings:
        """Return the settings of the latest step by the chosen editor, for one batch of all."""
        editors = Counter(o.editor for o in self._outcomes.values() if o.id in self.requests)
        name = self.editor or str(editors.most_common(1)[0][0])
        steps = [r for r in self.lineage if "settings" in r.body]
        recorded = [settings_of(r) for r in steps if name in r.body["settings"]["editors"]]
        base = recorded[-1] if recorded else settings_of(steps[-1])
        tables = dict(base.editors)
        tables[name] = {**tables.get(name, {}), **self.tables.get(name, {})}
        size = len(self.requests)
        return replace(
            base, chain=(name,), batch_size=size, repair=False, force=True, editors=tables
        )

    @property
    def _outcomes(self) -> dict[str, Outcome]:
        """The latest outcome of each request that was applied."""
        outcomes: dict[str, Outcome] = {}
        for revision in self.lineage:
            for outcome in outcomes_of(revision.body):
                if outcome.outcome == retention.APPLIED:
                    earlier = outcomes.get(outcome.id)
                    kept = {} if earlier is None else earlier.neighbours
                    neighbours = outcome.neighbours or kept
                    outcomes[outcome.id] = replace(outcome, neighbours=neighbours)
        return outcomes

    def _choose(self, layer: Layer) -> Choice:
        """Return the parts of a layer without matrix edits, and whether they replace its own."""
        parts = self.opened.patches(layer.patch)
        if layer.revision.id not in self.replaced:
            return parts, False
        gone = [part for part in parts if part.kind == FfnLowRankPatch.kind]
        self.reach = reduce(or_, (part.reach for part in gone), self.reach)
        return [part for part in parts if part.kind != FfnLowRankPatch.kind], True

    # -- one batch

    def _solve(self, head: Revision) -> list[Outcome]:
        """Solve for all requests in one batch, on the model without their matrix edits; put the
        patch on, and return the outcomes. Raises CannotConsolidate."""
        opened = self.opened
        pipeline = pipeline_at(opened, Past(head, frozenset(self.requests)), self.settings)
        requests = [Request.from_json(opened.store.request(i)) for i in self.requests]
        batch = Batch(tuple(encode(request, opened.task) for request in requests))
        number = opened.store.length
        edited = pipeline.rehearse(batch, number, self._outcomes, is_due=False)
        failures = [o for o in edited.outcomes if o.outcome != retention.APPLIED]
        if failures or len(edited.outcomes) < len(self.requests):
            missing = len(self.requests) - len(edited.outcomes) + len(failures)
            reason = failures[0].reason if failures else "they supersede one another"
            raise CannotConsolidate(
                f"{missing} of {len(self.requests)} corrections cannot be written in one batch by "
                f"{self.settings.chain[0]}: {reason}. Nothing was changed. Another --editor, or a "
                f"larger drift_max, may take them all."
            )
        opened.edited.settle()
        self.parts = edited.parts
        self.reach |= edited.reach
        return [replace(o, repair=True, supersedes=(), neighbours={}) for o in edited.outcomes]

    def _require_all_right(self, before: Mapping[str, bool]) -> None:
        """Raise CannotConsolidate if a correction that is right at head is wrong on the model as it
        stands now. All probes are measured anew."""
        ledger = RunState(self.opened.store, self.opened.site).ledger
        now = ledger.outcomes()
        entries = (ledger.entry(key) for key, is_right in now.items() if not is_right)
        broken = [e for e in entries if e is not None and e.role == EDIT and before.get(e.key)]
        if not broken:
            return
        owners = dict.fromkeys(entry.owner for entry in broken)
        shown = ", ".join(self._told(owner) for owner in list(owners)[:SHOWN_MAX])
        raise CannotConsolidate(
            f"{len(owners)} corrections in force would break: {shown}"
            f"{', …' if len(owners) > SHOWN_MAX else ''}. Nothing was changed. Revert them, or "
            "repair what follows with `cedit apply --repair` on the state as it is."
        )

    def _told(self, identity: str) -> str:
        request = Request.from_json(self.opened.store.request(identity))
        return f"{str(request.prompt)!r} → {request.target_new!r}"
