"""The step: a batch of requests in, one revision out.

    read → plan → edit → prove → re-check → commit

The patch is written to the disk while the earlier edits are measured again, and one transaction
makes the revision durable, with the measurements.

Knows the order of the stages, their hand-overs, and the record of a step. Leaves planning to
`planning`, editing and proving to `editing`, the state of a run to `run_state`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from html import escape
from types import MappingProxyType
from typing import Any

from continual.editors.chains import make_chain
from continual.effects import moved_blocks
from continual.memory.answers import AnswerJudge
from continual.patches import pack
from continual.picture_marks import digests_in, picture_keys
from continual.pictures import Album
from continual.pictures.album import album_of
from continual.recheck import retention
from continual.recheck.measuring import Measured
from continual.recheck.probing import NewProbes, Probed, probed, read
from continual.recheck.retention import Outcome
from continual.recheck.run_state import RunState
from continual.requests import Request
from continual.site import Site
from continual.statistics import Statistics
from continual.step.batches import Batch
from continual.step.clock import COMMIT, EDIT, PROBE, RECHECK, StageClock
from continual.step.editing import EditSetup, EditStage, ProvenEdits
from continual.step.planning import EditPlan, PlannedEdit, Planner
from continual.step.settings import ApplySettings
from continual.step.watching import WatchSet
from continual.streams import Item
from continual.watch.neighbours import Neighbourhood, WatchedRequest
from store import BlobRef, Draft, Revision, Store, operations


@dataclass(frozen=True, repr=False)
class Step:
    """A step that is done: its revision, outcomes, measurements and durations."""

    revision: Revision
    outcomes: tuple[Outcome, ...]
    quarantined: tuple[Item, ...]
    measured: Measured | None  # None if this step was not re-checked
    edit_s: float  # plan, edit, prove, commit
    commit_s: float  # of that, the commit: everything on disk
    probe_s: float  # the first measurement of the new requests' own probes
    recheck_s: float  # all earlier probes again, and the metrics
    patch_bytes: int
    unknown: Mapping[str, int] = field(default_factory=dict)  # records by unknown key
    unnamed: int = 0  # requests whose prompt does not name their subject

    def summary(self) -> dict[str, Any]:
        """Return the step's place in the history, the requests that were tried and applied, and the
        metrics that have a value."""
        counts = retention.count_outcomes(self.outcomes)
        rates = {} if self.measured is None else self.measured.rates.to_json()
        return {
            "revision": self.revision.id[:12],
            "seq": self.revision.seq,
            "editor": self.revision.body["editor"],
            **{name: counts[name] for name in ("attempted", "applied", "failed")},
            **{name: round(rate, 3) for name, rate in rates.items() if rate is not None},
        }

    def __repr__(self) -> str:
        told = self.summary()
        return (
            f"<cedit step {told['revision']} (@{told['seq']}): {told['applied']} of "
            f"{told['attempted']} applied>"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
            for name, value in self.summary().items()
        )
        return f"<table>{rows}</table>"


@dataclass(frozen=True)
class TriedStep:
    """A step that was made and measured, and not written."""

    outcomes: tuple[Outcome, ...]
    measured: Measured
    patch_bytes: int


@dataclass(frozen=True)
class _StepResults:
    """The outcomes, patch and measurements that a commit makes durable."""

    outcomes: list[Outcome]
    written: Future[BlobRef] | None  # the patch, on its way to the disk
    measured: Measured | None
    durations: Mapping[str, float]  # of the stages, by their names in the record

    @property
    def ledger(self) -> dict[str, Any] | None:
        """The ledger's record of the step: measurements, their time, and the durations."""
        if self.measured is None:
            return None
        timestamp = datetime.now(UTC).isoformat(timespec="seconds")
        return {**self.measured.to_json(), "at": timestamp, **self.durations}


def _with_plan(outcome: Outcome, edit: PlannedEdit, probed: Probed | None) -> Outcome:
    """Return the outcome with the answers and neighbours of its request from before the edit."""
    notes = {"answered_by": edit.answered_by} if edit.answered_by else {}
    neighbourhood = edit.neighbourhood
    return replace(
        outcome,
        expected=outcome.expected if probed is None else probed.expected,
        neighbours={} if neighbourhood is None else neighbourhood.to_json(),
        notes={**outcome.notes, **notes},
    )


def _pictures(plan: EditPlan, album: Album | None) -> tuple[str, ...]:
    """Return the digests of the pictures that the requests of a plan show, and their neighbours."""
    if album is None:
        return ()
    contents = [json.dumps(c.request.content()) for c in plan.encoded_requests]
    keys = [key for content in contents for key in digests_in(content)]
    for neighbourhood in (edit.neighbourhood for edit in plan.edits):
        if neighbourhood is not None:
            passages = (*neighbourhood.silent, *neighbourhood.held_out)
            keys += [key for passage in passages for key in picture_keys(passage.ids)]
    return tuple(dict.fromkeys(map(album.digest, keys)))


def _with_source(outcome: Outcome, request: Request) -> Outcome:
    """Return the outcome with the record's notes beside the request's content."""
    return replace(outcome, notes={**outcome.notes, **request.beside()})


class Pipeline:
    """Turns batches into revisions. The model stands at the store's head, before and after."""

    def __init__(
        self,
        store: Store,
        site: Site,
        run_state: RunState,
        settings: ApplySettings,
        statistics: Statistics | None = None,
        upcoming: Sequence[Request] = (),
    ) -> None:
        """`upcoming` are requests of the stream: their prompts make neighbours of others."""
        self._store, self._site, self._run_state = store, site, run_state
        self._upcoming = upcoming
        self._settings = settings
        self._answers = AnswerJudge(site)
        chain = make_chain(settings.chain, settings.editors, site.task.name)
        config = settings.watched
        self._planner = Planner(
            site,
            run_state.retention,
            run_state.ledger,
            force=settings.force,
            sees_spills=config is not None,
        )
        self._watch = None if config is None else WatchSet(site, config, settings.seed)
        setup = EditSetup(
            site,
            run_state.memory,
            run_state.recapture,
            statistics,
            run_state.known_answers,
            run_state.ledger,
            self._watch,
            run_state.memory_naming,
        )
        self._edit_stage = EditStage(setup, chain, settings.seed)

    def step(self, batch: Batch) -> Step:
        """Make one step, durable when this returns. Raises StoreError if it cannot be written."""
        clock = StageClock()
        number = self._store.length
        is_due = number % self._settings.recheck.every == 0
        plan = self._planner.plan(batch.encoded_requests, self._settings.repair)
        clock.lap(EDIT)
        plan = self._watched(plan)
        probes = self._probes(plan)
        clock.lap(PROBE)
        edited = self._edit(plan, probes, number)
        written = self._write_ahead(edited)
        clock.lap(EDIT)
        self._follow(plan, edited, is_due)
        clock.lap(RECHECK)
        self._register(plan, probes, edited)
        clock.lap(PROBE)
        metrics = self._recheck(edited) if is_due else None
        clock.lap(RECHECK)
        requests = {c.id: c.request for c in plan.encoded_requests}
        outcomes = [_with_source(o, requests[o.id]) for o in (*edited.outcomes, *plan.outcomes)]
        results = _StepResults(outcomes, written, metrics, clock.to_json())
        revision = self._commit(batch, plan, edited, results)
        clock.lap(COMMIT)
        return Step(
            revision,
            tuple(outcomes),
            batch.quarantined,
            metrics,
            edit_s=clock.seconds[EDIT] + clock.seconds[COMMIT],
            commit_s=clock.seconds[COMMIT],
            probe_s=clock.seconds[PROBE],
            recheck_s=clock.seconds[RECHECK],
            patch_bytes=revision.patch.length if revision.patch else 0,
            unknown=batch.unknown,
            unnamed=batch.unnamed,
        )

    def try_out(self, batch: Batch) -> TriedStep:
        """Make and measure a step as `step` does, and write nothing. The model and the state of the
        run are left as the step leaves them: the caller takes its patch off."""
        plan = self._watched(self._planner.plan(batch.encoded_requests, self._settings.repair))
        probes = self._probes(plan)
        edited = self._edit(plan, probes, self._store.length)
        self._follow(plan, edited, is_due=True)
        self._register(plan, probes, edited)
        measured = self._recheck(edited)
        tensors = pack(edited.parts)[0] if edited.parts else {}
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        return TriedStep((*edited.outcomes, *plan.outcomes), measured, size)

    def stands(self, identity: str) -> bool:
        """Tell whether this very request is in force and right: given again, it needs no edit."""
        return not self._settings.force and self._planner.stands(identity)

    def rehearse(
        self, batch: Batch, number: int, recorded: Mapping[str, Outcome], *, is_due: bool
    ) -> ProvenEdits:
        """Make step `number` of a batch again without writing it; the model is left as the step
        leaves it. `is_due` says whether the ledger followed that step, `recorded` has the outcomes
        on record with the requests' neighbours, by id."""
        plan = self._planner.plan(batch.encoded_requests, self._settings.repair)
        plan = self._watched(plan, recorded)
        probes = self._probes(plan)
        edited = self._edit(plan, probes, number)
        self._follow(plan, edited, is_due)
        self._register(plan, probes, edited)
        return edited

    # -- edit and prove

    def _edit(self, plan: EditPlan, probes: Mapping[str, Probed], number: int) -> ProvenEdits:
        """Make the planned edits. The queries of requests that are edited again or superseded leave
        the memory first."""
        memory = self._run_state.memory
        for outcome in plan.outcomes:
            for identity in outcome.supersedes:
                memory.forget(identity)
        for edit in plan.edits:
            self._run_state.contradict(edit.encoded_request.learned)
            if edit.neighbourhood is not None:
                fact = edit.neighbourhood.fact(edit.encoded_request.request)
                self._run_state.set_aside(edit.id, fact)
            for identity in (*edit.supersedes, edit.id):
                memory.forget(identity)
        edited = self._edit_stage.edit(plan.edits, number, plan.parts)
        applied_ids = {o.id for o in edited.outcomes if o.outcome == retention.APPLIED}
        for edit in plan.edits:
            if edit.id in applied_ids:
                memory.remember(edit.id, edit.rows.query)
        if edited.reach.moves(self._site.place):
            self._run_state.recapture({e.id: e.encoded_request.learned for e in plan.edits})
        plans = {edit.id: edit for edit in plan.edits}
        outcomes = (_with_plan(o, plans[o.id], probes.get(o.id)) for o in edited.outcomes)
        return ProvenEdits(edited.parts, tuple(outcomes))

    # -- neighbours

    def _watched(
        self, plan: EditPlan, recorded: Mapping[str, Outcome] = MappingProxyType({})
    ) -> EditPlan:
        """Return the plan with the neighbourhood of every edit, from the record or written now."""
        if self._watch is None:
            return plan
        retained = self._run_state.retention.requests
        records = {i: r.neighbours for i, r in retained.items() if r.neighbours}
        records |= {i: o.neighbours for i, o in recorded.items() if o.neighbours}
        new_edits = [edit for edit in plan.edits if edit.id not in records]
        queries = [self._asked(edit) for edit in new_edits]
        history = (retained[identity].request for identity in reversed(retained))
        stream = (request for request in self._upcoming if request.id not in retained)
        known = itertools.chain(history, stream)
        neighbourhoods = self._watch.neighbourhoods(queries, known) if queries else {}
        neighbourhoods |= {
            e.id: Neighbourhood.from_json(records[e.id]) for e in plan.edits if e not in new_edits
        }
        edits = [replace(edit, neighbourhood=neighbourhoods[edit.id]) for edit in plan.edits]
        return replace(plan, edits=tuple(edits))

    def _asked(self, edit: PlannedEdit) -> WatchedRequest:
        encoded_request = edit.encoded_request
        is_known = self._run_state.names_enough(encoded_request.request.named_subject)
        return WatchedRequest(
            encoded_request.request, encoded_request.required, edit.rows, is_known
        )

    # -- probes of new requests

    def _probes(self, plan: EditPlan) -> dict[str, Probed]:
        """Read the other probes of requests attempted for the first time, before the edit."""
        retained = self._run_state.retention
        encoded_requests = [edit.encoded_request for edit in plan.edits if edit.id not in retained]
        return probed(self._answers, encoded_requests)

    def _register(self, plan: EditPlan, probes: Mapping[str, Probed], edited: ProvenEdits) -> None:
        """Register the new requests' probes. Rows from before an edit of matrices are read again:
        all have moved."""
        state = self._site.edited.rows_state
        new_probes = []
        for edit in plan.edits:
            if (edit_probes := probes.get(edit.id)) is not None:
                rows = (edit.rows, edit_probes.rows) if edit.state == state else (None, None)
                new_probes.append(NewProbes(edit.encoded_request, edit_probes.expected, *rows))
        self._run_state.register(read(self._site, new_probes))
        applied_ids = {o.id for o in edited.outcomes if o.outcome == retention.APPLIED}
        for edit in plan.edits:
            neighbourhood = edit.neighbourhood
            if (
                edit.id in applied_ids
                and edit.id in probes
                and self._watch
                and neighbourhood is not None
            ):
                self._run_state.watch_over(
                    edit.id, neighbourhood, self._watch.probe_rows(neighbourhood)
                )

    # -- commit

    def _write_ahead(self, edited: ProvenEdits) -> Future[BlobRef] | None:
        return self._store.write_ahead(*pack(edited.parts)) if edited.parts else None

    def _commit(
        self, batch: Batch, plan: EditPlan, edited: ProvenEdits, results: _StepResults
    ) -> Revision:
        """Write quarantine, then patch and revision; the stream goes on behind this batch."""
        self._quarantine(batch)
        body = {
            "editor": self._settings.chain[0],
            "settings": self._settings.to_json(),
            "requests": [outcome.to_json() for outcome in results.outcomes],
            "quarantined": [item.number for item in batch.quarantined],
            "streams": batch.streams,
            **moved_blocks(edited.reach, self._site.place),
        }
        return self._store.commit(
            Draft(
                operation=operations.EDIT,
                parent=self._store.head_id,
                fingerprint=self._site.edited.fingerprint,
                body=body,
                written=results.written,
                requests={c.id: c.request.content() for c in plan.encoded_requests},
                subjects={edit.id: edit.encoded_request.request.key for edit in plan.edits},
                streams=batch.streams,
                ledger=results.ledger,
                pictures=_pictures(plan, album_of(self._site.task)),
            )
        )

    def _quarantine(self, batch: Batch) -> None:
        if batch.quarantined:
            self._store.quarantine(
                {
                    "stream": item.stream or batch.source,
                    "position": item.position,
                    "rolling": item.rolling,
                    **item.to_quarantine(),
                }
                for item in batch.quarantined
            )

    # -- re-check

    def _follow(self, plan: EditPlan, edited: ProvenEdits, is_due: bool) -> None:
        """Take the outcomes into retention set and memory, and retire the probes of superseded
        requests. If a re-check is due, let the ledger follow all patches since the last one, for
        the other probes known before the step."""
        requests = {c.id: c.request for c in plan.encoded_requests}
        self._run_state.take((*edited.outcomes, *plan.outcomes), requests)
        if is_due:
            self._run_state.note(self._run_state.ledger.advance())

    def _recheck(self, edited: ProvenEdits) -> Measured:
        if self._settings.recheck.full:
            self._run_state.note(self._run_state.ledger.remeasure())
        identities = [outcome.id for outcome in edited.outcomes]
        return self._run_state.measure(identities)
