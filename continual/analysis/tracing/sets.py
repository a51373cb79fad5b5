"""Traces of many facts, one after another: each is kept in the store's cache as it is made, so a
run that ends early goes on from there.

A fact of a stream is a request with a subject that its prompt names. Its answer is the new target
where the model gives it, else the old one where it gives that, or the model's own next token. The
cache is safe to delete.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from continual.analysis.tracing.averages import TraceAverages, averaged
from continual.analysis.tracing.facts import SubjectAbsent, TracedFact, mentioned
from continual.analysis.tracing.results import UNKNOWN, FactTrace
from continual.analysis.tracing.tracer import Tracer
from continual.errors import RequestError
from continual.execution import Executor
from continual.execution.local import LOCAL
from continual.prompts import prompt_json
from continual.requests import Request
from store import Revision, Store, StoreError

SUBJECTS_MAX = 10_000
"""Facts of a stream that are read, and subjects whose embeddings σ is computed from."""
HISTORY_MAX = 1000
"""Latest requests of the history whose subjects σ is computed from, beside a single prompt's."""


@dataclass
class TracedState:
    """The traces made on the model at one revision."""

    name: str  # as the revision was asked for
    revision: Revision
    way: str  # of running, in words for people
    sigma: float
    window: int  # blocks
    traces: list[FactTrace] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The revision in words for people."""
        return f"{self.name} (@{self.revision.seq})"

    def averages(self) -> TraceAverages:
        """Return the averages of the traces."""
        return averaged(self.traces)

    def to_json(self) -> dict[str, Any]:
        """Return the entries about the state in a record of `cedit trace --json`."""
        return {
            "revision": self.revision.id,
            "seq": self.revision.seq,
            "way": self.way,
            "sigma": self.sigma,
            "window": self.window,
        }


@dataclass
class FactSet:
    """The facts of a stream, and the reasons why some of its records are none."""

    requests: list[Request] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)  # counts by reason
    token_ids: list[int] = field(default_factory=list)  # of all subjects

    def leave_out(self, reason: str) -> None:
        """Count a record that is no fact."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


def read_set(tracer: Tracer, requests: Iterable[Request]) -> FactSet:
    """Read the facts among some requests: those whose prompt names their subject."""
    found = FactSet()
    for request in requests:
        if not request.subject:
            found.leave_out("without a subject")
            continue
        try:
            found.token_ids += subject_ids(tracer, request)
        except SubjectAbsent:
            found.leave_out("whose prompt does not contain their subject")
        except RequestError:
            found.leave_out("whose prompt cannot be read")
        else:
            found.requests.append(request)
        if len(found.requests) >= SUBJECTS_MAX:
            break
    return found


def subject_ids(tracer: Tracer, request: Request) -> list[int]:
    """Return the tokens of a request's subject in its prompt, each place of it. Raises
    SubjectAbsent and RequestError."""
    task = tracer.task
    asked, ids = task.asked(request.prompt), task.question(request.prompt).ids
    places = mentioned(tracer.edited.tokenizer, asked, request.prompt, request.subject or "")
    return [ids[place] for mention in places for place in mention]


def history_ids(tracer: Tracer, store: Store, revision: Revision) -> list[int]:
    """Return the tokens of the subjects of a history's latest requests up to a revision."""
    names = [
        entry["id"] for r in store.lineage(revision.id) for entry in r.body.get("requests", ())
    ]
    requests = (Request.from_json(store.request(name)) for name in names[-HISTORY_MAX:])
    return read_set(tracer, requests).token_ids


@dataclass(frozen=True)
class TraceCache:
    """The traces in a store's cache, of facts on one state of the model."""

    store: Store
    tracer: Tracer
    sigma: float

    def traced(self, fact: TracedFact, *, is_selective: bool, about: dict[str, Any]) -> FactTrace:
        """Return the kept trace of a fact, or make it and keep it."""
        name = self._name(fact, is_selective)
        try:
            entry = self.store.cached(name)
        except StoreError:
            entry = None
        if entry is not None:
            return FactTrace.from_json(entry.meta)
        trace = self.tracer.trace(fact, self.sigma, is_selective=is_selective, facts=about)
        self.store.put_cached(name, {}, trace.to_json())
        return trace

    def _name(self, fact: TracedFact, is_selective: bool) -> str:
        parts = (
            self.tracer.edited.fingerprint,
            self.tracer.window,
            f"{self.sigma:.9g}",
            prompt_json(fact.prompt),
            fact.subject,
            list(fact.sequence.targets),
            is_selective,
        )
        return f"traces/{self.tracer.config.digest(*parts)}"


def traces_of(
    cache: TraceCache,
    requests: Sequence[Request],
    *,
    own_answers: bool = False,
    executor: Executor = LOCAL,
) -> Iterator[FactTrace]:
    """Yield the trace of each fact. With `own_answers` each is traced for the model's own next
    token."""
    return executor.map(partial(_trace, cache, own_answers), requests)


def _trace(cache: TraceCache, own_answers: bool, request: Request) -> FactTrace:
    about = {k: v for k in ("case", "relation") if (v := getattr(request, k)) is not None}
    answers = [None] if own_answers else [request.target_new, *filter(None, [request.target_old])]
    found: list[FactTrace] = []
    for answer in answers:
        fact = cache.tracer.fact(request.prompt, request.subject or "", answer)
        found.append(cache.traced(fact, is_selective=True, about=about))
        if found[-1].outcome != UNKNOWN:
            return found[-1]
    return found[0]
