"""Where a run stands: all that it carries in memory at head, rebuilt from the journal on opening.

Retention set, ledger, query memory and the metrics are folds over the revisions from base to head;
a run that was killed comes back to the same state. Knows how to build and to advance them; the
stages of a step are in `step.pipeline`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from continual.effects import has_moved
from continual.memory.answers import Answers
from continual.naming import names
from continual.prompts import compared
from continual.proposals import Taught
from continual.queries.memory import QueryMemory
from continual.recheck.candidates import encode
from continual.recheck.general_rows import GeneralRows
from continual.recheck.ledger import (
    CONTINUATION,
    EDIT,
    HELD_OUT,
    LOCALITY,
    NEIGHBOUR,
    REPHRASE,
    TEST,
    TRAIN,
    WATCH,
    WATCHED,
    Entry,
    Ledger,
)
from continual.recheck.metrics import Count, Rates, ratio
from continual.recheck.probing import NewProbes
from continual.recheck.retention import (
    APPLIED,
    ATTEMPTED,
    Outcome,
    Retention,
    outcomes_of,
    reverted_later,
)
from continual.requests import Probe, Request
from continual.site import Site
from continual.site.rows import Rows
from continual.tasks import Encoding, Question
from continual.watch import fluency
from continual.watch.neighbours import Neighbourhood
from continual.watch.stating import CorrectedFact
from store import Revision, Store

KEPT = (LOCALITY, TRAIN, TEST, *WATCHED)
"""The roles of probes that no edit should turn."""
NAMING_MIN = 4  # training probes about a subject
CHANGES_TOLD_MAX = 20  # of a step, in words
REGISTERED_TOGETHER = 1024  # probes: few passes over the neurons, and few rows held twice


@dataclass(frozen=True)
class Measured:
    """What a re-check found: the metrics, and the probes that turned since the last record."""

    rates: Rates
    turned: Mapping[str, bool]
    generality: Count  # of the edits since the last record
    changed: tuple[Mapping[str, str], ...] = ()  # what should have stayed: prompt, before, after
    fluency: Mapping[str, float] = field(default_factory=dict)  # of requests where it is news
    base: Mapping[str, Count] | None = None  # accuracies before the first edit; at base only

    def to_json(self) -> dict[str, Any]:
        """The ledger's record."""
        record: dict[str, Any] = {
            "rates": self.rates.to_json(),
            "turned": dict(self.turned),
            "GR": [self.generality.right, self.generality.total],
        }
        if self.changed:
            record["changed"] = [dict(change) for change in self.changed]
        if self.fluency:
            record["fluency"] = dict(self.fluency)
        if self.base is not None:
            record["base"] = {role: [c.right, c.total] for role, c in self.base.items()}
        return record


@dataclass(frozen=True)
class _Neighbour:
    """A held-out neighbour in the ledger, as facts are looked for in it."""

    owner: str
    place: int
    text: str  # of the question, as it is compared
    said: frozenset[int]


@dataclass(frozen=True)
class Past:
    """A revision to stand at as if some requests had never been made."""

    revision: Revision
    without: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Trace:
    """What a lineage comes to: requests, by the last time that something became of them."""

    fresh: Sequence[str]  # attempted for the first time since the last record
    moved: Sequence[str]  # applied when matrices were edited last
    since: Collection[str]  # applied again or anew since then


class Standing:
    """The state of a run at head, read from the journal. The model has head's patches on."""

    def __init__(self, store: Store, site: Site, past: Past | None = None) -> None:
        """`past` is where it stands instead of at head."""
        self._store = store
        self._site = site
        self.retention = Retention()
        self.ledger = Ledger(site)
        self._generality = Count()  # GR, as far as it is recorded
        self._fresh = Count()  # GR of what came since the last record
        self._recorded: dict[str, bool] = {}  # outcomes in the journal; right where not named
        lineage = store.lineage("head" if past is None else past.revision)
        without = frozenset[str]() if past is None else past.without
        self._register_sets(lineage[0].body["probes"])
        self.general = GeneralRows.at(store, site, lineage)
        self.ledger.register(*self.general.held_out())
        self._taught = self._training_rows()
        self.memory = QueryMemory(self._training_queries())
        self.fluency: dict[str, float] = {}  # of requests whose continuation is not as it was
        self._contradicted: set[Question] = set()  # questions of requests
        self._corrected: dict[str, CorrectedFact] = {}  # facts of the lineage, in their order
        self._near: list[_Neighbour] = []  # held-out neighbours in the ledger
        trace = self._retrace(lineage, without)
        self._register_retained(trace.moved, trace.since)
        self._base = self._base_counts()
        self._unrecorded = self._differences()
        for identity in trace.fresh:
            self._fresh += self._generality_of(identity)
        self._revision = lineage[-1]

    def record(self) -> None:
        """Measure head, and put it on record, where no step has: at base, and where a run ended
        between two re-checks."""
        if not self._store.writable or self._store.ledger(self._revision.seq) is not None:
            return
        outcomes = outcomes_of(self._revision.body)
        measured = self.measure([o.id for o in outcomes if o.outcome in ATTEMPTED])
        self._store.record_ledger(self._revision.seq, measured.to_json())

    # -- building

    def _retrace(self, lineage: Sequence[Revision], without: frozenset[str]) -> _Trace:
        """Follow a lineage and its records in the ledger, as if some requests had never been."""
        fresh: list[str] = []
        moved: tuple[str, ...] = ()
        since: set[str] = set()
        for revision, reverted in zip(lineage, reverted_later(lineage), strict=True):
            gone = reverted | without
            fresh += self._follow(revision, gone)
            since |= {o.id for o in outcomes_of(revision.body) if o.outcome == APPLIED} - gone
            if has_moved(revision.body):
                moved, since = self._applied(), set()
            record = self._store.ledger(revision.seq)
            if record is not None:
                self.fluency.update(record.get("fluency", {}))
                fresh.clear()
                self._recorded.update(record["turned"])
                self._generality += Count(*record["GR"])
        return _Trace(fresh, moved, since)

    def _follow(self, revision: Revision, reverted: Collection[str]) -> list[str]:
        """Follow a revision's outcomes; the requests that it attempted for the first time. What was
        reverted later is as if it had never been there."""
        fresh = []
        for outcome in outcomes_of(revision.body):
            request = self._request(outcome.id)
            if outcome.id in reverted:
                self.retention.take(outcome, request, is_reverted=True)
                continue
            if outcome.outcome in ATTEMPTED and outcome.id not in self.retention:
                fresh.append(outcome.id)
            if outcome.outcome in ATTEMPTED:
                self.contradict(encode(request, self._site.task).learned)
                if outcome.neighbours:
                    fact = Neighbourhood.from_json(outcome.neighbours).fact(request)
                    self._set_aside_in_general(fact)
                    self._corrected[outcome.id] = fact
            self.retention.take(outcome, request)
        return fresh

    def _register_sets(self, probes: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
        """The probe sets of the base revision: training and test."""
        for name in (TRAIN, TEST):
            read = [Probe.model_validate(probe) for probe in probes.get(name, ())]
            encodings = [self._site.task.encode(probe.prompt, probe.answer) for probe in read]
            self.ledger.register([Entry(name, name, i, e) for i, e in enumerate(encodings)])

    def _training_queries(self) -> Tensor:
        """[m, d] the memory that no edit made: training probes, then general text."""
        taught = self.ledger.rows_of(TRAIN, TRAIN).query
        return torch.cat([taught, self.general.queries()]) if self.general.text.memory else taught

    def _training_rows(self) -> dict[Question, range]:
        """Where each question of the training probes has its rows in the memory."""
        places: dict[Question, range] = {}
        first = 0
        for entry in self.ledger.entries:
            if entry.role == TRAIN:
                last = first + len(entry.encoding.targets)
                places[entry.encoding.question] = range(first, last)
                first = last
        return places

    def _register_retained(self, moved: Sequence[str], since: Collection[str]) -> None:
        """The probes of the retained requests: what was learned in a pass for each, as when it was
        edited, so that the rows have the same bits; all others together. The memory has what was
        captured together when matrices were edited last, and what came since."""
        learned: list[Entry] = []
        others: list[Entry] = []
        parts: list[Rows] = []
        captured = self._captured(moved)
        for retained in self.retention.requests.values():
            candidate = encode(retained.request, self._site.task)
            rows = self._site.rows(candidate.learned)
            learned += candidate.learned_entries()
            parts.append(rows)
            if len(learned) >= REGISTERED_TOGETHER:
                self.ledger.register(learned, Rows.join(parts))
                learned, parts = [], []
            if retained.applied:
                is_old = candidate.id in captured and candidate.id not in since
                query = captured[candidate.id] if is_old else rows.query
                self.memory.remember(candidate.id, query)
            others += candidate.other_entries(retained.expected)
        if learned:
            self.ledger.register(learned, Rows.join(parts))
        self.ledger.register(others)
        self._register_neighbours()

    def _register_neighbours(self) -> None:
        """The held-out neighbours of the edits in force; those go that state the fact of an edit
        behind theirs."""
        entries: list[Entry] = []
        for identity, retained in self.retention.requests.items():
            if retained.applied and retained.neighbours:
                near = Neighbourhood.from_json(retained.neighbours)
                entries += watched_entries(identity, near)
        self.ledger.register(entries)
        self._note_neighbours(entries)
        turns = {identity: turn for turn, identity in enumerate(self._corrected)}
        for identity, fact in self._corrected.items():
            earlier = [n for n in self._near if turns.get(n.owner, -1) < turns[identity]]
            self._drop_stating(fact, earlier)

    def _note_neighbours(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry.role == NEIGHBOUR:
                place = self.ledger.places(entry.owner, NEIGHBOUR)[entry.index]
                text = self._site.edited.decode(entry.encoding.question.ids)
                said = frozenset(entry.encoding.targets)
                self._near.append(_Neighbour(entry.owner, place, text, said))

    def _drop_stating(self, fact: CorrectedFact, near: Iterable[_Neighbour]) -> None:
        """Count no longer the neighbours that state a fact."""
        stating = [n for n in near if not fact.answers.isdisjoint(n.said) and fact.is_about(n.text)]
        self.ledger.drop([neighbour.place for neighbour in stating])

    def _applied(self) -> tuple[str, ...]:
        return tuple(i for i, retained in self.retention.requests.items() if retained.applied)

    def _captured(
        self, owners: Sequence[str], new: Mapping[str, Sequence[Encoding]] = MappingProxyType({})
    ) -> dict[str, Tensor]:
        """The queries of these edits as the model stands, in passes over all of them together: the
        same owners in the same order give the same bits. `new` are learned from and not stored."""
        learned = {i: new.get(i) or self._learned(i) for i in owners}
        if not learned:
            return {}
        rows = self._site.rows_in_passes([e for each in learned.values() for e in each])
        sizes = [sum(len(e.targets) for e in each) for each in learned.values()]
        parts = rows.split(sizes)
        return {i: part.query for i, part in zip(learned, parts, strict=True)}

    def _learned(self, identity: str) -> Sequence[Encoding]:
        return encode(self._request(identity), self._site.task).learned

    def _base_counts(self) -> dict[str, Count]:
        record = self._store.ledger(0)
        if record is not None:
            return {role: Count(*count) for role, count in record["base"].items()}
        return {role: self.ledger.count(role) for role in (TRAIN, TEST)}

    def _request(self, identity: str) -> Request:
        return Request.from_json(self._store.request(identity))

    def _differences(self) -> dict[str, bool]:
        """Outcomes found on opening that are not what the journal has (say, on other hardware)."""
        found = self.ledger.outcomes()
        return {k: now for k, now in found.items() if self._recorded.get(k, True) != now}

    # -- advancing

    def contradict(self, learned: Iterable[Encoding]) -> None:
        """Take out of the memory what training said to the very questions that a request asks."""
        for encoding in learned:
            question = encoding.question
            if question in self._taught:
                self._contradicted.add(question)
                self.memory.contradict(self._taught[question])

    def set_aside(self, identity: str, fact: CorrectedFact) -> None:
        """Take out of the memory, and out of what is measured, whatever states the fact that a
        request corrects."""
        self._set_aside_in_general(fact)
        self._corrected[identity] = fact
        self._drop_stating(fact, (n for n in self._near if n.owner != identity))

    def _set_aside_in_general(self, fact: CorrectedFact) -> None:
        """The same for training probes and general text."""
        if not fact.answers:
            return
        general = self._taught_count
        places = [general + place for place in self.general.stated_in_memory(fact)]
        for text, token, rows in self._taught_texts:
            if token in fact.answers and fact.is_about(text):
                places += rows
        self.memory.contradict(places)
        held_out = self.ledger.places(WATCH, WATCH)
        self.ledger.drop([held_out[index] for index in self.general.stated_in_held_out(fact)])

    def memory_naming(self, subject: str, near: Tensor) -> QueryMemory:
        """The memory of a neuron that asks for a normalised subject: general text, whatever else
        names the subject, and the queries [r, d] of its neighbours."""
        general = range(self._taught_count, self._taught_count + self.general.memory_rows)
        taught = [
            row for text, _, rows in self._taught_texts if names(text, subject) for row in rows
        ]
        owners = {
            owner
            for owner in self.memory.owners
            if (kept := self.retention.requests.get(owner)) is None
            or any(names(compared(p), subject) for p in kept.request.prompts)
        }
        return self.memory.part([*taught, *general], owners, near)

    def names_enough(self, subject: str) -> bool:
        """Tell whether the training probes say by themselves what else there is about a subject."""
        naming = (1 for text, _, _ in self._taught_texts if subject and names(text, subject))
        return sum(islice(naming, NAMING_MIN)) == NAMING_MIN

    @cached_property
    def _taught_count(self) -> int:
        """How many rows of the memory are training probes'; general text stands behind them."""
        return sum(len(rows) for rows in self._taught.values())

    @cached_property
    def _taught_texts(self) -> list[tuple[str, int, range]]:
        """The training probes as they are compared: text, first token of the answer, places."""
        decode = self._site.edited.decode
        return [
            (decode(e.encoding.question.ids), e.encoding.targets[0], places)
            for e in self.ledger.entries
            if e.role == TRAIN and (places := self._taught.get(e.encoding.question))
        ]

    def taught(self) -> Taught:
        """Training probes, and the prompts of the edits that the memory has queries of."""
        training = tuple(e.encoding for e in self.ledger.entries if e.role == TRAIN)
        gone = {i for i, e in enumerate(training) if e.question in self._contradicted}
        places = {owner: self.ledger.places(owner, EDIT) for owner in self.memory.owners}
        edits = {o: self.ledger.entries[own[0]].encoding for o, own in places.items() if own}
        general = tuple(passage.ids for passage in self.general.text.memory)
        return Taught(training, frozenset(gone), edits, general)

    def recapture(self, new: Mapping[str, Sequence[Encoding]] = MappingProxyType({})) -> None:
        """Matrices were edited: what the memory holds has moved. `new`: as in `_captured`."""
        taught = [e.encoding for e in self.ledger.entries if e.role == TRAIN]
        training = self.memory.training[:0]
        if taught:
            training = self._site.rows_in_passes(taught).query
        if self.general.text.memory:
            training = torch.cat([training, self.general.queries()])
        self.memory.recapture(training, self._captured(self.memory.owners, new))

    def take(self, outcomes: Iterable[Outcome], requests: Mapping[str, Request]) -> None:
        """Follow what a step did to the retention set."""
        for outcome in outcomes:
            for superseded in outcome.supersedes:
                for key in self.ledger.retire(superseded):
                    self._unrecorded.pop(key, None)
                self.memory.forget(superseded)
            self.retention.take(outcome, requests[outcome.id])

    def register(self, new: Sequence[NewProbes]) -> None:
        """Take in the probes of requests straight after their first attempt: they count for GR."""
        groups = [group for one in new for group in one.groups()]
        entries = [entry for some, _ in groups for entry in some]
        if entries:
            self.ledger.register(entries, Rows.join(rows for _, rows in groups if rows is not None))
            self.note({entry.key: self.ledger.is_right(entry) for entry in entries})
        for one in new:
            self._fresh += self._generality_of(one.candidate.id)

    def watch_over(
        self, identity: str, neighbourhood: Neighbourhood, rows: Rows | None = None
    ) -> None:
        """Take in the held-out neighbours of an edit that was just applied; `rows` where they are
        known already."""
        entries = watched_entries(identity, neighbourhood)
        self.ledger.register(entries, rows)
        self._note_neighbours(entries)
        self.note({entry.key: self.ledger.is_right(entry) for entry in entries})

    def note(self, turned: Mapping[str, bool]) -> None:
        """Outcomes as they are now: those that are news join the next record."""
        self._unrecorded.update(turned)

    def measure(self, current: Sequence[str]) -> Measured:
        """The metrics, where `current` are the requests of the step just done."""
        self._generality += self._fresh
        generality, self._fresh = self._fresh, Count()
        edits = self.ledger.count(EDIT)
        own = self.ledger.count(EDIT, current)
        earlier = Count(edits.right - own.right, edits.total - own.total)
        rates = Rates(
            SR=self.retention.attempts.rate,
            GR=self._generality.rate,
            ER=earlier.rate,
            ER_incl=edits.rate,
            TrainR=ratio(self.ledger.count(TRAIN), self._base[TRAIN]),
            TestR=ratio(self.ledger.count(TEST), self._base[TEST]),
            Locality=self.ledger.count(LOCALITY).rate,
            Watch=self.ledger.count(WATCH).rate,
            Neighbours=self.ledger.count(NEIGHBOUR).rate,
            Continuation=self.ledger.count(CONTINUATION).rate,
            Fluency=None,
        )
        seen, self._unrecorded = self._unrecorded, {}
        turned = {key: now for key, now in seen.items() if self._recorded.get(key, True) != now}
        self._recorded.update(turned)
        news = self._follow_fluency(turned)
        rates = replace(rates, Fluency=self._mean_fluency())
        base = self._base if self._store.ledger(0) is None else None
        return Measured(rates, turned, generality, self._changed(turned), news, base)

    # -- words

    def _changed(self, turned: Mapping[str, bool]) -> tuple[Mapping[str, str], ...]:
        """The probes that should have stayed right and did not, in words; the first of many."""
        broken = (self.ledger.entry(key) for key, right in turned.items() if not right)
        harmed = (entry for entry in broken if entry is not None and entry.role in KEPT)
        return tuple(self._in_words(entry) for entry in islice(harmed, CHANGES_TOLD_MAX))

    def _in_words(self, entry: Entry) -> Mapping[str, str]:
        text, encoding = self._site.task.text, entry.encoding
        answers = Answers(self._site)
        return {
            "role": entry.role,
            "prompt": answers.text(encoding),
            "before": text(encoding.targets),
            "after": text(answers.greedily(encoding)),
        }

    # -- fluency

    def _follow_fluency(self, turned: Mapping[str, bool]) -> dict[str, float]:
        """Measure the free continuations of requests behind whose answer a position turned. Where
        none is wrong the text goes on as the base's, word for word, and fluency is 1."""
        owners = {key.rsplit(":", 2)[0] for key in turned if f":{CONTINUATION}:" in key}
        found = {owner: self._fluency_of(owner) for owner in owners if owner in self.retention}
        self.fluency.update(found)
        return found

    def _fluency_of(self, owner: str) -> float:
        places = self.ledger.places(owner, CONTINUATION)
        count = self.ledger.count(CONTINUATION, [owner])
        if not places or count.right == count.total:
            return 1.0
        asked = self.ledger.entries[self.ledger.places(owner, EDIT)[0]].encoding
        start = len(asked.question.ids)
        base = self.ledger.entries[places[0]].encoding.ids[start:]
        said = self._site.task.answer(self._site.edited.model, asked.question, len(base))
        return fluency.share_kept(said, base)

    def _mean_fluency(self) -> float | None:
        """The mean over the edits in force that have a continuation."""
        owners = [o for o in self.retention.requests if self.ledger.places(o, CONTINUATION)]
        if not owners:
            return None
        return sum(self.fluency.get(owner, 1.0) for owner in owners) / len(owners)

    def _generality_of(self, owner: str) -> Count:
        """Held-out rephrases where a request has any, else the rephrases that it learned from."""
        held_out = self.ledger.count(HELD_OUT, [owner])
        return held_out if held_out.total else self.ledger.count(REPHRASE, [owner])


def watched_entries(identity: str, neighbourhood: Neighbourhood) -> list[Entry]:
    """The probes of a neighbourhood: its held-out prompts, and each position behind the answer."""
    near = [passage.encoding() for passage in neighbourhood.held_out]
    behind = [encoding for passage in neighbourhood.behind for encoding in passage.positions()]
    return [
        Entry(identity, role, index, encoding)
        for role, encodings in ((NEIGHBOUR, near), (CONTINUATION, behind))
        for index, encoding in enumerate(encodings)
    ]
