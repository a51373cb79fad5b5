"""The plan stage: chooses the requests of a batch to edit, and gives the others their outcomes.

Drops exact repeats, lets a later request supersede earlier ones on the same fact, and skips
requests that the model already answers rightly. Memory records of requests that are superseded or
edited again leave the model first. Measures nothing but the prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from continual.memory.answers import AnswerJudge
from continual.patches import Patch
from continual.patches.memory import MemoryPatch
from continual.proposals import Edit
from continual.recheck import retention
from continual.recheck.encoded_requests import EncodedRequest, encode
from continual.recheck.ledger import EDIT, Ledger
from continual.recheck.retention import Outcome, Retention
from continual.site import Site
from continual.site.rows import Rows
from continual.tasks import Encoding
from continual.watch.neighbours import Neighbourhood


@dataclass(frozen=True)
class PlannedEdit:
    """A request to edit, with the rows of its prompt and rephrases."""

    encoded_request: EncodedRequest
    rows: Rows  # of the prompt and the rephrases, from one pass over them alone
    state: str  # of the model's matrices when the rows were read
    supersedes: tuple[str, ...] = ()
    repair: bool = False
    neighbourhood: Neighbourhood | None = None  # None: nothing is watched
    answered_by: str | None = None  # another edit, which spilt over to this prompt

    @property
    def id(self) -> str:
        """The request's id."""
        return self.encoded_request.id

    def standing_on(self, site: Site) -> PlannedEdit:
        """Return the edit with its rows by the model's matrices as they are now."""
        if self.state == site.edited.rows_state:
            return self
        rows = site.rows(self.encoded_request.learned)
        return replace(self, rows=rows, state=site.edited.rows_state)

    def edit(self, near: Rows | None = None, quiet: Sequence[Encoding] = ()) -> Edit:
        """Return the request as an editor sees it, with its neighbours in memory and their rows."""
        sizes = [len(encoding.targets) for encoding in self.encoded_request.learned]
        rows = self.rows.split(sizes)
        encoded_request = self.encoded_request
        wordings = () if self.neighbourhood is None else self.neighbourhood.wordings
        learned, forms = encoded_request.learned, encoded_request.forms
        return Edit(encoded_request.request, learned, rows, forms, near, tuple(quiet), wordings)


@dataclass(frozen=True)
class EditPlan:
    """The requests to edit, and the outcomes of the others."""

    edits: tuple[PlannedEdit, ...]
    outcomes: tuple[Outcome, ...]
    encoded_requests: tuple[EncodedRequest, ...]  # all of the batch, repairs included
    parts: tuple[Patch, ...] = ()  # the beginning of the step's patch, which is on the model


class Planner:
    """Plans batches against the retained requests."""

    def __init__(
        self, site: Site, kept: Retention, ledger: Ledger, *, force: bool, sees_spills: bool
    ) -> None:
        """`sees_spills`: a prompt that another edit answers rightly does not count as known."""
        self._site, self._kept, self._ledger, self._force = site, kept, ledger, force
        self._sees_spills = sees_spills
        self._answers = AnswerJudge(site)

    def plan(self, batch: Sequence[EncodedRequest], repair: bool) -> EditPlan:
        """Plan a batch, in the order of its requests; repairs come first.

        When this returns, the records that go are off the model.
        """
        encoded_requests, outcomes = self._without_repeats(batch)
        rivals = {
            identity for c in encoded_requests for identity in self._kept.competitors(c.request)
        }
        repairs = list(self._broken(encoded_requests, rivals)) if repair else []
        parts = self._release((*repairs, *encoded_requests))
        try:
            edits, skips = self._gate(repairs, encoded_requests)
        except BaseException:
            self._site.edited.take_off(self._site.edited.depth - len(parts))
            raise
        return EditPlan(tuple(edits), (*outcomes, *skips), (*repairs, *batch), parts)

    def _gate(
        self, repairs: Iterable[EncodedRequest], latest: Iterable[EncodedRequest]
    ) -> tuple[list[PlannedEdit], list[Outcome]]:
        """Return the requests to edit, and the outcomes of those the model answers rightly."""
        state = self._site.edited.rows_state
        edits: list[PlannedEdit] = []
        skips: list[Outcome] = []
        for encoded_request in repairs:
            rows = self._site.rows(encoded_request.learned)
            edits.append(PlannedEdit(encoded_request, rows, state, repair=True))
        for encoded_request in latest:
            supersedes = tuple(self._kept.competitors(encoded_request.request))
            rows = self._site.rows(encoded_request.learned)
            if self._force or not self._is_right(encoded_request, rows):
                edits.append(PlannedEdit(encoded_request, rows, state, supersedes))
            elif (source := self._spilt_from(encoded_request, rows)) is not None:
                edits.append(
                    PlannedEdit(encoded_request, rows, state, supersedes, answered_by=source)
                )
            else:
                skips.append(Outcome(encoded_request.id, retention.SKIPPED, supersedes=supersedes))
        return edits, skips

    def _release(self, encoded_requests: Iterable[EncodedRequest]) -> tuple[Patch, ...]:
        """Take the records of superseded requests, and the requests' own earlier ones, out of the
        model's memory."""
        edited = self._site.edited
        removals: dict[str, str] = {}  # by id, the request that a record goes for
        if len(edited.memory):
            for encoded_request in encoded_requests:
                identities = (encoded_request.id, *self._kept.competitors(encoded_request.request))
                removals |= {i: encoded_request.id for i in identities if i in edited.memory}
        if not removals:
            return ()
        patch = MemoryPatch(removed=tuple(removals), removed_for=tuple(removals.values()))
        edited.put([patch])
        return (patch,)

    def _without_repeats(
        self, batch: Sequence[EncodedRequest]
    ) -> tuple[list[EncodedRequest], list[Outcome]]:
        """Return the batch's last request on each fact, and the outcomes of the others."""
        encoded_requests: list[EncodedRequest] = []
        outcomes: list[Outcome] = []
        for encoded_request in batch:
            rivals = [c for c in encoded_requests if _compete(c, encoded_request)]
            outcomes += [Outcome(c.id, retention.SUPERSEDED) for c in rivals]
            encoded_requests = [c for c in encoded_requests if c not in rivals]
            if any(c.id == encoded_request.id for c in encoded_requests) or self.stands(
                encoded_request.id
            ):
                outcomes.append(Outcome(encoded_request.id, retention.REPEATED))
            else:
                encoded_requests.append(encoded_request)
        return encoded_requests, outcomes

    def stands(self, identity: str) -> bool:
        """Tell whether this very request was applied and is right now."""
        retained = self._kept.requests.get(identity)
        if retained is None or not retained.applied:
            return False
        return self._ledger.count(EDIT, [identity]).right == 1

    def _broken(self, batch: Iterable[EncodedRequest], gone: set[str]) -> Iterable[EncodedRequest]:
        """Yield applied requests that are wrong now and that this step neither supersedes nor edits
        anyway."""
        excluded_ids = gone | {encoded_request.id for encoded_request in batch}
        for identity, retained in self._kept.requests.items():
            if retained.applied and identity not in excluded_ids and not self.stands(identity):
                yield encode(retained.request, self._site.task)

    def _is_right(self, encoded_request: EncodedRequest, rows: Rows) -> bool:
        """Tell whether the model at head answers the prompt rightly, in each of its forms."""
        return self._answers.are_all_right(encoded_request.learned, encoded_request.forms, rows)

    def _spilt_from(self, encoded_request: EncodedRequest, rows: Rows) -> str | None:
        """Return the id of the other request whose edit gives this prompt its right answer; None if
        the model knows the answer without any neuron or record."""
        if not self._sees_spills:
            return None
        routes = self._answers.routes(encoded_request.required)
        owners = {route.record.id for route in routes if route is not None}
        if not owners and self._knows_bare(encoded_request, rows):
            return None
        target = encoded_request.request.target_new
        applied_ids = (i for i, retained in self._kept.requests.items() if retained.applied)
        sharers = [i for i in applied_ids if self._kept.requests[i].request.target_new == target]
        return next(iter([*sorted(owners), *sharers]), UNKNOWN)

    def _knows_bare(self, encoded_request: EncodedRequest, rows: Rows) -> bool:
        """Tell whether the model is right without the neurons of its last place."""
        if not self._site.has_rows:
            with self._site.bank.silenced():
                return all(self._site.judge_in_full(encoded_request.required))
        required_rows = rows[slice(encoded_request.required_rows)]
        return bool(self._site.verdict(required_rows.hidden, required_rows.targets).right.all())


UNKNOWN = "an earlier edit"


def _compete(one: EncodedRequest, other: EncodedRequest) -> bool:
    """Tell whether two requests are about the same fact, or have the same prompt, and disagree."""
    a, b = one.request, other.request
    return not set(a.keys).isdisjoint(b.keys) and a.disagrees_with(b)
