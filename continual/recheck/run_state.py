"""The state of a run at head, carried in memory and rebuilt from the journal on opening.

Retention set, ledger, query memory and the metrics are folds over the revisions from base to head;
a run that was killed comes back to the same state. Builds and advances them together; leaves the
records to `measuring`, the memory that no edit made to `training_memory`, and the stages of a step
to `step.pipeline`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from continual.effects import has_moved
from continual.naming import names
from continual.prompts import compared
from continual.proposals import KnownAnswers
from continual.queries.memory import ProtectedQueries
from continual.recheck.encoded_requests import encode
from continual.recheck.general_rows import GeneralRows
from continual.recheck.ledger import (
    CONTINUATION,
    EDIT,
    NEIGHBOUR,
    TEST,
    TRAIN,
    WATCH,
    Ledger,
    LedgerEntry,
)
from continual.recheck.measuring import Measured, Measurements
from continual.recheck.probing import NewProbes
from continual.recheck.retention import (
    APPLIED,
    ATTEMPTED,
    Outcome,
    Retention,
    outcomes_of,
    reverted_later,
)
from continual.recheck.training_memory import TrainingMemory
from continual.requests import Probe, Request
from continual.site import Site
from continual.site.rows import Rows
from continual.tasks import Encoding
from continual.watch.neighbours import Neighbourhood
from continual.watch.stating import CorrectedFact
from store import Revision, Store

REGISTERED_TOGETHER = 1024  # probes: few passes over the neurons, and few rows held twice


@dataclass(frozen=True)
class _Neighbour:
    """A held-out neighbour in the ledger, as it is searched for facts."""

    owner: str
    place: int
    text: str  # of the question
    said: frozenset[int]


@dataclass(frozen=True)
class Past:
    """A revision, as if some requests had never been made."""

    revision: Revision
    without: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _LineageTrace:
    """The requests of a lineage, by their last event."""

    fresh: Sequence[str]  # attempted for the first time since the last record
    moved: Sequence[str]  # in force at the last edit of matrices
    since: Collection[str]  # applied again or anew since then


class RunState:
    """The state of a run at head, read from the journal. The model has head's patches on."""

    def __init__(self, store: Store, site: Site, past: Past | None = None) -> None:
        """`past` is the state to stand at instead of head."""
        self._store = store
        self._site = site
        self.retention = Retention()
        self.ledger = Ledger(site)
        self._measurements = Measurements(store, site, self.ledger, self.retention)
        lineage = store.lineage("head" if past is None else past.revision)
        without = frozenset[str]() if past is None else past.without
        self._register_sets(lineage[0].body["probes"])
        self.general = GeneralRows.at(store, site, lineage)
        self.ledger.register(*self.general.held_out())
        self._training = TrainingMemory(site, self.ledger, self.general)
        self.memory = ProtectedQueries(self._training.queries())
        self._corrected: dict[str, CorrectedFact] = {}  # facts of the lineage, in their order
        self._near: list[_Neighbour] = []  # held-out neighbours in the ledger
        trace = self._retrace(lineage, without)
        self._register_retained(trace.moved, trace.since)
        self._measurements.begin(trace.fresh)
        self._revision = lineage[-1]

    def record(self) -> None:
        """Measure head and put it on record if no step did: at base, and if a run ended between two
        re-checks."""
        if not self._store.writable or self._store.ledger(self._revision.seq) is not None:
            return
        outcomes = outcomes_of(self._revision.body)
        metrics = self.measure([o.id for o in outcomes if o.outcome in ATTEMPTED])
        self._store.record_ledger(self._revision.seq, metrics.to_json())

    # -- building

    def _retrace(self, lineage: Sequence[Revision], without: frozenset[str]) -> _LineageTrace:
        """Follow a lineage and its records in the ledger, as if some requests had never been."""
        new_ids: list[str] = []
        moved: tuple[str, ...] = ()
        since: set[str] = set()
        for revision, reverted in zip(lineage, reverted_later(lineage), strict=True):
            removals = reverted | without
            new_ids += self._follow(revision, removals)
            since |= {o.id for o in outcomes_of(revision.body) if o.outcome == APPLIED} - removals
            if has_moved(revision.body):
                moved, since = self._applied(), set()
            record = self._store.ledger(revision.seq)
            if record is not None:
                self._measurements.follow(record)
                new_ids.clear()
        return _LineageTrace(new_ids, moved, since)

    def _follow(self, revision: Revision, reverted: Collection[str]) -> list[str]:
        """Follow a revision's outcomes; return the requests that it attempted for the first time.
        A request reverted later is left out, as if it had never been there."""
        new_ids = []
        for outcome in outcomes_of(revision.body):
            request = self._request(outcome.id)
            if outcome.id in reverted:
                self.retention.take(outcome, request, is_reverted=True)
                continue
            if outcome.outcome in ATTEMPTED and outcome.id not in self.retention:
                new_ids.append(outcome.id)
            if outcome.outcome in ATTEMPTED:
                self.contradict(encode(request, self._site.task).learned)
                if outcome.neighbours:
                    fact = Neighbourhood.from_json(outcome.neighbours).fact(request)
                    self._set_aside_in_general(fact)
                    self._corrected[outcome.id] = fact
            self.retention.take(outcome, request)
        return new_ids

    def _register_sets(self, probes: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
        """Register the probe sets of the base revision: training and test."""
        for name in (TRAIN, TEST):
            parsed_probes = [Probe.model_validate(probe) for probe in probes.get(name, ())]
            encodings = [
                self._site.task.encode(probe.prompt, probe.answer) for probe in parsed_probes
            ]
            self.ledger.register([LedgerEntry(name, name, i, e) for i, e in enumerate(encodings)])

    def _register_retained(self, moved: Sequence[str], since: Collection[str]) -> None:
        """Register the probes of the retained requests. The learned prompts of each request are
        read in a pass of their own, as when it was edited, so that the rows have the same bits; all
        other probes together. The memory gets the queries captured together at the last edit of
        matrices, and those of the edits since."""
        learned_entries: list[LedgerEntry] = []
        other_entries: list[LedgerEntry] = []
        parts: list[Rows] = []
        queries = self._captured(moved)
        for retained in self.retention.requests.values():
            encoded_request = encode(retained.request, self._site.task)
            rows = self._site.rows(encoded_request.learned)
            learned_entries += encoded_request.learned_entries()
            parts.append(rows)
            if len(learned_entries) >= REGISTERED_TOGETHER:
                self.ledger.register(learned_entries, Rows.join(parts))
                learned_entries, parts = [], []
            if retained.applied:
                is_old = encoded_request.id in queries and encoded_request.id not in since
                query = queries[encoded_request.id] if is_old else rows.query
                self.memory.remember(encoded_request.id, query)
            other_entries += encoded_request.other_entries(retained.expected)
        if learned_entries:
            self.ledger.register(learned_entries, Rows.join(parts))
        self.ledger.register(other_entries)
        self._register_neighbours()

    def _register_neighbours(self) -> None:
        """Register the held-out neighbours of the edits in force, except neighbours that state the
        fact of a later edit."""
        entries: list[LedgerEntry] = []
        for identity, retained in self.retention.requests.items():
            if retained.applied and retained.neighbours:
                neighbourhood = Neighbourhood.from_json(retained.neighbours)
                entries += watched_entries(identity, neighbourhood)
        self.ledger.register(entries)
        self._note_neighbours(entries)
        turns = {identity: turn for turn, identity in enumerate(self._corrected)}
        for identity, fact in self._corrected.items():
            neighbours = [n for n in self._near if turns.get(n.owner, -1) < turns[identity]]
            self._drop_stating(fact, neighbours)

    def _note_neighbours(self, entries: Iterable[LedgerEntry]) -> None:
        for entry in entries:
            if entry.role == NEIGHBOUR:
                place = self.ledger.places(entry.owner, NEIGHBOUR)[entry.index]
                text = self._site.edited.decode(entry.encoding.question.ids)
                targets = frozenset(entry.encoding.targets)
                self._near.append(_Neighbour(entry.owner, place, text, targets))

    def _drop_stating(self, fact: CorrectedFact, near: Iterable[_Neighbour]) -> None:
        """Count neighbours that state a fact no longer."""
        neighbours = [
            n for n in near if not fact.answers.isdisjoint(n.said) and fact.is_about(n.text)
        ]
        self.ledger.drop([neighbour.place for neighbour in neighbours])

    def _applied(self) -> tuple[str, ...]:
        return tuple(i for i, retained in self.retention.requests.items() if retained.applied)

    def _captured(
        self, owners: Sequence[str], new: Mapping[str, Sequence[Encoding]] = MappingProxyType({})
    ) -> dict[str, Tensor]:
        """Read the queries of these edits with the model as it stands, in passes over all of them
        together: the same owners in the same order give the same bits. `new` has the learned
        encodings of requests that are not stored yet."""
        encodings = {i: new.get(i) or self._learned(i) for i in owners}
        if not encodings:
            return {}
        rows = self._site.rows_in_passes([e for group in encodings.values() for e in group])
        sizes = [sum(len(e.targets) for e in group) for group in encodings.values()]
        parts = rows.split(sizes)
        return {i: part.query for i, part in zip(encodings, parts, strict=True)}

    def _learned(self, identity: str) -> Sequence[Encoding]:
        return encode(self._request(identity), self._site.task).learned

    def _request(self, identity: str) -> Request:
        return Request.from_json(self._store.request(identity))

    # -- advancing

    def contradict(self, learned: Iterable[Encoding]) -> None:
        """Take the training probes that ask a request's very questions out of the memory."""
        self.memory.contradict(self._training.contradicted(learned))

    def set_aside(self, identity: str, fact: CorrectedFact) -> None:
        """Take passages and probes that state the fact that a request corrects out of the memory
        and out of the measurements."""
        self._set_aside_in_general(fact)
        self._corrected[identity] = fact
        self._drop_stating(fact, (n for n in self._near if n.owner != identity))

    def _set_aside_in_general(self, fact: CorrectedFact) -> None:
        """Set a fact aside among training probes and general text."""
        if not fact.answers:
            return
        self.memory.contradict(self._training.stating(fact))
        places = self.ledger.places(WATCH, WATCH)
        self.ledger.drop([places[index] for index in self.general.stated_in_held_out(fact)])

    def memory_naming(self, subject: str, near: Tensor) -> ProtectedQueries:
        """Return the memory of a neuron that asks for a normalised subject: general text, training
        probes and edits that name the subject, and the queries [r, d] of its neighbours."""
        owners = {
            owner
            for owner in self.memory.owners
            if (retained := self.retention.requests.get(owner)) is None
            or any(names(compared(p), subject) for p in retained.request.prompts)
        }
        return self.memory.part(self._training.beside(subject), owners, near)

    def names_enough(self, subject: str) -> bool:
        """Tell whether enough training probes name a subject to protect its other facts."""
        return self._training.names_enough(subject)

    def known_answers(self) -> KnownAnswers:
        """Return the known answers: the training probes, the prompts of the edits with queries in
        memory, and the general text in memory."""
        places = {owner: self.ledger.places(owner, EDIT) for owner in self.memory.owners}
        edits = {
            o: self.ledger.entries[edit_places[0]].encoding
            for o, edit_places in places.items()
            if edit_places
        }
        general = tuple(passage.ids for passage in self.general.text.memory)
        training = self._training
        return KnownAnswers(
            training.encodings(), training.gone(), training.stated(), edits, general
        )

    def recapture(self, new: Mapping[str, Sequence[Encoding]] = MappingProxyType({})) -> None:
        """Have the queries in memory read anew after an edit that moved them, once an editor looks
        at them: until then nothing moves them again without another call. `new`: as in
        `_captured`."""
        owners = self.memory.owners

        def read() -> tuple[Tensor, Mapping[str, Tensor]]:
            return self._training.recaptured(), self._captured(owners, new)

        self.memory.recapture_later(read)

    def take(self, outcomes: Iterable[Outcome], requests: Mapping[str, Request]) -> None:
        """Take a step's outcomes into the retention set; superseded requests leave ledger and
        memory."""
        for outcome in outcomes:
            for identity in outcome.supersedes:
                self._measurements.forget(self.ledger.retire(identity))
                self.memory.forget(identity)
            self.retention.take(outcome, requests[outcome.id])

    def register(self, new: Sequence[NewProbes]) -> None:
        """Take in the probes of requests straight after their first attempt: they count for GR."""
        groups = [group for probes in new for group in probes.groups()]
        entries = [entry for members, _ in groups for entry in members]
        if entries:
            self.ledger.register(entries, Rows.join(rows for _, rows in groups if rows is not None))
            self.note({entry.key: self.ledger.is_right(entry) for entry in entries})
        for probes in new:
            self._measurements.count_in(probes.encoded_request.id)

    def watch_over(
        self, identity: str, neighbourhood: Neighbourhood, rows: Rows | None = None
    ) -> None:
        """Take in the held-out neighbours of an edit just applied; `rows` are theirs if known
        already."""
        entries = watched_entries(identity, neighbourhood)
        self.ledger.register(entries, rows)
        self._note_neighbours(entries)
        self.note({entry.key: self.ledger.is_right(entry) for entry in entries})

    def note(self, turned: Mapping[str, bool]) -> None:
        """Take in outcomes as they are now: those that are news join the next record."""
        self._measurements.note(turned)

    def measure(self, current: Sequence[str]) -> Measured:
        """Return the metrics; `current` are the requests of the step just done."""
        return self._measurements.measure(current)


def watched_entries(identity: str, neighbourhood: Neighbourhood) -> list[LedgerEntry]:
    """Return the probes of a neighbourhood: its held-out prompts, and each position behind the
    answer."""
    neighbours = [passage.encoding() for passage in neighbourhood.held_out]
    continuations = [
        encoding for passage in neighbourhood.behind for encoding in passage.positions()
    ]
    return [
        LedgerEntry(identity, role, index, encoding)
        for role, encodings in ((NEIGHBOUR, neighbours), (CONTINUATION, continuations))
        for index, encoding in enumerate(encodings)
    ]
