"""The metrics of a run, as they go on record: rates, the probes that turned, and harm in words.

Knows which outcomes are in the journal and which are news. Leaves judging probes to the ledger, the
choice of requests that count to the retention set, and the time of measuring to the steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from continual.memory.answers import AnswerJudge
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
    Ledger,
    LedgerEntry,
)
from continual.recheck.metrics import Count, Rates, ratio
from continual.recheck.retention import Retention
from continual.site import Site
from continual.watch import fluency
from store import Store

KEPT = (LOCALITY, TRAIN, TEST, *WATCHED)
"""The roles of probes that no edit should turn."""
CHANGES_TOLD_MAX = 20  # of a step, in words


@dataclass(frozen=True)
class Measured:
    """The result of a re-check: the metrics, and the probes that turned since the last record."""

    rates: Rates
    turned: Mapping[str, bool]
    generality: Count  # of the edits since the last record
    changed: tuple[Mapping[str, str], ...] = ()  # probes that an edit should not have turned
    fluency: Mapping[str, float] = field(default_factory=dict)  # by request, if it is news
    base: Mapping[str, Count] | None = None  # accuracies before the first edit; at base only

    def to_json(self) -> dict[str, Any]:
        """Return the ledger's record."""
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


class Measurements:
    """The metrics up to the last record, and the outcomes that are news since."""

    def __init__(self, store: Store, site: Site, ledger: Ledger, retention: Retention) -> None:
        self._store, self._site = store, site
        self._ledger, self._retention = ledger, retention
        self._generality = Count()  # GR up to the last record
        self._fresh = Count()  # GR of the requests since the last record
        self._recorded: dict[str, bool] = {}  # outcomes in the journal; a probe not named is right
        self._unrecorded: dict[str, bool] = {}  # outcomes that may be news
        self._fluency: dict[str, float] = {}  # of requests whose continuation has changed
        self._base: Mapping[str, Count] = {}

    # -- following

    def follow(self, record: Mapping[str, Any]) -> None:
        """Follow a record of the journal."""
        self._fluency.update(record.get("fluency", {}))
        self._recorded.update(record["turned"])
        self._generality += Count(*record["GR"])

    def begin(self, fresh: Iterable[str]) -> None:
        """Begin at head, whose probes are registered; `fresh` are the requests since the last
        record.

        Outcomes that differ from the journal's (say, on other hardware) are news.
        """
        self._base = self._base_counts()
        outcomes = self._ledger.outcomes()
        self._unrecorded = self._news(outcomes)
        for identity in fresh:
            self.count_in(identity)

    def count_in(self, identity: str) -> None:
        """Count a request for GR, straight after its first attempt."""
        self._fresh += self._generality_of(identity)

    def note(self, outcomes: Mapping[str, bool]) -> None:
        """Take in outcomes as they are now: those that are news join the next record."""
        self._unrecorded.update(outcomes)

    def forget(self, keys: Iterable[str]) -> None:
        """Forget probes that count no longer."""
        for key in keys:
            self._unrecorded.pop(key, None)

    def _base_counts(self) -> dict[str, Count]:
        record = self._store.ledger(0)
        if record is not None:
            return {role: Count(*count) for role, count in record["base"].items()}
        return {role: self._ledger.count(role) for role in (TRAIN, TEST)}

    def _news(self, outcomes: Mapping[str, bool]) -> dict[str, bool]:
        """Return the outcomes that differ from the journal's."""
        return {
            k: outcome for k, outcome in outcomes.items() if self._recorded.get(k, True) != outcome
        }

    def _generality_of(self, owner: str) -> Count:
        """Count the held-out rephrases of a request, or, if it has none, its learned ones."""
        count = self._ledger.count(HELD_OUT, [owner])
        return count if count.total else self._ledger.count(REPHRASE, [owner])

    # -- measuring

    def measure(self, current: Sequence[str]) -> Measured:
        """Return the metrics; `current` are the requests of the step just done."""
        self._generality += self._fresh
        generality, self._fresh = self._fresh, Count()
        news, self._unrecorded = self._news(self._unrecorded), {}
        self._recorded.update(news)
        fluency_news = self._follow_fluency(news)
        base = self._base if self._store.ledger(0) is None else None
        return Measured(
            self._rates(current), news, generality, self._changed(news), fluency_news, base
        )

    def _rates(self, current: Sequence[str]) -> Rates:
        ledger = self._ledger
        edits, current_edits = ledger.count(EDIT), ledger.count(EDIT, current)
        earlier_edits = Count(edits.right - current_edits.right, edits.total - current_edits.total)
        return Rates(
            SR=self._retention.attempts.rate,
            GR=self._generality.rate,
            ER=earlier_edits.rate,
            ER_incl=edits.rate,
            TrainR=ratio(ledger.count(TRAIN), self._base[TRAIN]),
            TestR=ratio(ledger.count(TEST), self._base[TEST]),
            Locality=ledger.count(LOCALITY).rate,
            Watch=ledger.count(WATCH).rate,
            Neighbours=ledger.count(NEIGHBOUR).rate,
            Continuation=ledger.count(CONTINUATION).rate,
            Fluency=self._mean_fluency(),
        )

    # -- words

    def _changed(self, turned: Mapping[str, bool]) -> tuple[Mapping[str, str], ...]:
        """Describe the probes that should have stayed right and did not, at most the first
        CHANGES_TOLD_MAX."""
        entries = (self._ledger.entry(key) for key, is_right in turned.items() if not is_right)
        changes = (entry for entry in entries if entry is not None and entry.role in KEPT)
        return tuple(self._in_words(entry) for entry in islice(changes, CHANGES_TOLD_MAX))

    def _in_words(self, entry: LedgerEntry) -> Mapping[str, str]:
        text, encoding = self._site.task.text, entry.encoding
        answers = AnswerJudge(self._site)
        return {
            "role": entry.role,
            "prompt": answers.text(encoding),
            "before": text(encoding.targets),
            "after": text(answers.greedily(encoding)),
        }

    # -- fluency

    def _follow_fluency(self, turned: Mapping[str, bool]) -> dict[str, float]:
        """Measure the free continuations of requests behind whose answer a position turned. If
        no position is wrong, the text goes on word for word as the base's, and fluency is 1."""
        owners = {key.rsplit(":", 2)[0] for key in turned if f":{CONTINUATION}:" in key}
        news = {owner: self._fluency_of(owner) for owner in owners if owner in self._retention}
        self._fluency.update(news)
        return news

    def _fluency_of(self, owner: str) -> float:
        ledger = self._ledger
        places = ledger.places(owner, CONTINUATION)
        count = ledger.count(CONTINUATION, [owner])
        if not places or count.right == count.total:
            return 1.0
        encoding = ledger.entries[ledger.places(owner, EDIT)[0]].encoding
        start = len(encoding.question.ids)
        base = ledger.entries[places[0]].encoding.ids[start:]
        answer = self._site.task.answer(self._site.edited.model, encoding.question, len(base))
        return fluency.share_kept(answer, base)

    def _mean_fluency(self) -> float | None:
        """Return the mean over the edits in force that have a continuation; None without any."""
        owners = [o for o in self._retention.requests if self._ledger.places(o, CONTINUATION)]
        if not owners:
            return None
        return sum(self._fluency.get(owner, 1.0) for owner in owners) / len(owners)
