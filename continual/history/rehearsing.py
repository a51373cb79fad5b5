"""A step of the past made once more: the same requests, settings and seed, at the same state.

Knows how to find a batch again in a revision's record. Writes nothing: `recompute` compares the new
patch with the recorded one, `reverting` puts the new one in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.open_store import OpenStore
from continual.patches import Patch
from continual.recheck import retention
from continual.recheck.encoded_requests import encode
from continual.recheck.retention import Outcome, outcomes_of
from continual.recheck.run_state import Past, RunState
from continual.requests import Request
from continual.step.batches import Batch
from continual.step.editing import ProvenEdits
from continual.step.pipeline import Pipeline
from continual.step.settings import ApplySettings
from store import Revision, operations


def batch_of(opened: OpenStore, revision: Revision, without: Collection[str] = ()) -> Batch:
    """Return the requests of a step in an order that makes the same plan: first the requests that
    others of the batch superseded, then repeats of earlier requests, then the edited or right ones,
    then repeats of these."""
    outcomes = [o for o in outcomes_of(revision.body) if not o.repair and o.id not in without]
    planned_ids = {o.id for o in outcomes if o.outcome in (*retention.ATTEMPTED, retention.SKIPPED)}

    def turn(outcome: Outcome) -> int:
        if outcome.outcome == retention.SUPERSEDED:
            return 0
        is_planned = outcome.id in planned_ids
        return (3 if is_planned else 1) if outcome.outcome == retention.REPEATED else 2

    outcomes.sort(key=turn)
    requests = [Request.from_json(opened.store.request(outcome.id)) for outcome in outcomes]
    return Batch(tuple(encode(request, opened.task) for request in requests))


def pipeline_at(opened: OpenStore, past: Past, settings: ApplySettings) -> Pipeline:
    """Return the pipeline as it was after a revision. The model has to be in that revision's
    state."""
    run_state = RunState(opened.store, opened.site, past)
    return Pipeline(opened.store, opened.site, run_state, settings, opened.statistics)


@dataclass(frozen=True)
class Recomputed:
    """A step made again, beside the one on record."""

    revision: Revision
    difference: str | None  # the first; None if every tensor has the same bits

    @property
    def is_same(self) -> bool:
        """True if the patch came out bit for bit as before."""
        return self.difference is None


def recompute(opened: OpenStore, revisions: Iterable[Revision]) -> Iterator[Recomputed]:
    """Make the steps among these revisions again, each from the recorded state before it, and
    compare the patches. Revisions of other operations are passed over. The model is left at the end
    of the last step. Raises EditError if an editor lacks something that it needs."""
    run_state: RunState | None = None
    state_id: str | None = None  # model and run state are as after this revision
    for revision in revisions:
        if revision.operation != operations.EDIT or revision.parent is None:
            continue
        if run_state is None or revision.parent != state_id:
            opened.stand_at(revision.parent)
            parent = opened.store.revision(revision.parent)
            run_state = RunState(opened.store, opened.site, Past(parent))
        settings = settings_of(revision)
        pipeline = Pipeline(opened.store, opened.site, run_state, settings, opened.statistics)
        edited = rehearse(opened, pipeline, revision)
        mismatch = difference(opened.patches(revision.patch), edited.parts)
        state_id = revision.id if mismatch is None else None
        yield Recomputed(revision, mismatch)


def difference(wanted: Sequence[Patch], found: Sequence[Patch]) -> str | None:
    """Describe the first difference between two patches; None if they are the same."""
    if len(wanted) != len(found):
        return f"{len(found)} parts instead of {len(wanted)}"
    for number, (part, twin) in enumerate(zip(wanted, found, strict=True)):
        name = f"part {number} ({part.kind})"
        if (part.kind, part.meta(), part.owners) != (twin.kind, twin.meta(), twin.owners):
            return f"{name} is another: {twin.kind} {twin.meta()}"
        tensors = twin.tensors()
        for key, tensor in part.tensors().items():
            if (text := _tensor_difference(tensor, tensors.get(key))) is not None:
                return f"{name}, {key}: {text}"
    return None


def _tensor_difference(wanted: Tensor, found: Tensor | None) -> str | None:
    if found is None or found.shape != wanted.shape:
        return f"another shape, {None if found is None else tuple(found.shape)}"
    found = found.cpu()
    if torch.equal(wanted, found):
        return None
    gap = (wanted - found).abs()
    return f"{int((gap > 0).sum())} of {wanted.numel()} numbers differ, by {gap.max():.3g} at most"


def rehearse(
    opened: OpenStore, pipeline: Pipeline, revision: Revision, without: Collection[str] = ()
) -> ProvenEdits:
    """Make a revision's step again, without some of its requests. The model has to be in the state
    before the step, and is left in the state after it."""
    batch = batch_of(opened, revision, without)
    is_due = opened.store.ledger(revision.seq) is not None
    outcomes = {outcome.id: outcome for outcome in outcomes_of(revision.body)}
    return pipeline.rehearse(batch, revision.seq, outcomes, is_due=is_due)


def settings_of(revision: Revision) -> ApplySettings:
    """Return the settings of a step."""
    return ApplySettings.from_json(revision.body["settings"])
