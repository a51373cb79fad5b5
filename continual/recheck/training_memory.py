"""The queries in memory that no edit made: training probes, then general text.

Knows the rows of each probe and each passage in the memory, and finds those that a request
contradicts, that state the fact of a correction, or that name a subject. Leaves the edits' own
queries to `run_state`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from continual.naming import names
from continual.recheck.general_rows import GeneralRows
from continual.recheck.ledger import TRAIN, Ledger
from continual.site import Site
from continual.tasks import Encoding, Question
from continual.watch.stating import CorrectedFact

NAMING_MIN = 4  # training probes about a subject


class TrainingMemory:
    """Training probes of a ledger and general text, by their places in the memory."""

    def __init__(self, site: Site, ledger: Ledger, general: GeneralRows) -> None:
        """Made when the ledger has the training probes."""
        self._site, self._ledger, self._general = site, ledger, general
        self._entries = [entry for entry in ledger.entries if entry.role == TRAIN]
        self._places: dict[Question, range] = {}  # of each question's rows
        self._contradicted: set[Question] = set()  # questions of requests
        self._stating: set[int] = set()  # training probes that state a corrected fact
        start = 0
        for entry in self._entries:
            end = start + len(entry.encoding.targets)
            self._places[entry.encoding.question] = range(start, end)
            start = end

    # -- queries

    def queries(self) -> Tensor:
        """Return the queries [m, d] as the ledger has them."""
        return self._with_general(self._ledger.rows_of(TRAIN, TRAIN).query)

    def recaptured(self) -> Tensor:
        """Read the queries [m, d] anew, by the matrices as they are now."""
        if not self._entries:
            return self.queries()
        return self._with_general(self._site.rows_in_passes(self.encodings()).query)

    def _with_general(self, taught: Tensor) -> Tensor:
        text = self._general.text
        return torch.cat([taught, self._general.queries()]) if text.memory else taught

    # -- training probes

    def encodings(self) -> tuple[Encoding, ...]:
        """Return the training probes."""
        return tuple(entry.encoding for entry in self._entries)

    def gone(self) -> frozenset[int]:
        """Return the places, among `encodings`, of training probes that a request contradicts."""
        questions = (entry.encoding.question for entry in self._entries)
        return frozenset(
            i for i, question in enumerate(questions) if question in self._contradicted
        )

    def stated(self) -> frozenset[int]:
        """Return the places, among `encodings`, of training probes that state a corrected fact."""
        return frozenset(self._stating)

    # -- places

    def contradicted(self, learned: Iterable[Encoding]) -> list[int]:
        """Return the places of the very questions that a request asks; these count as gone from
        now on."""
        places: list[int] = []
        for encoding in learned:
            if encoding.question in self._places:
                self._contradicted.add(encoding.question)
                places += self._places[encoding.question]
        return places

    def stating(self, fact: CorrectedFact) -> list[int]:
        """Return the places of general text and training probes that state a fact."""
        places = [self._count + place for place in self._general.stated_in_memory(fact)]
        for number, (text, token, rows) in enumerate(self._texts):
            if token in fact.answers and fact.is_about(text):
                places += rows
                self._stating.add(number)
        return places

    def beside(self, subject: str) -> list[int]:
        """Return the places of training probes that name a normalised subject, and of all general
        text."""
        general = range(self._count, self._count + self._general.memory_rows)
        probe_rows = [row for text, _, rows in self._texts if names(text, subject) for row in rows]
        return [*probe_rows, *general]

    def names_enough(self, subject: str) -> bool:
        """Tell whether enough training probes name a subject to protect its other facts."""
        matches = (1 for text, _, _ in self._texts if subject and names(text, subject))
        return sum(islice(matches, NAMING_MIN)) == NAMING_MIN

    @cached_property
    def _count(self) -> int:
        """The number of training probes' rows in the memory; general text stands behind them."""
        return sum(len(rows) for rows in self._places.values())

    @cached_property
    def _texts(self) -> list[tuple[str, int, range]]:
        """The training probes as tests for names and facts see them: text, first token of the
        answer, places."""
        decode = self._site.edited.decode
        return [
            (decode(e.encoding.question.ids), e.encoding.targets[0], places)
            for e in self._entries
            if (places := self._places[e.encoding.question])
        ]
