"""What the model answers to the outside: by a record where an input is about one, else as it is.

With an empty memory this is what `Site` says, by the same passes. Knows which of the two is asked;
how a record is found is the scope's, who reads it `recall`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from continual.memory.recall import Recall, recall_of
from continual.memory.routing import Route
from continual.site import Site
from continual.site.rows import Rows
from continual.tasks import Encoding, Question


@dataclass(frozen=True)
class Read:
    """A probe as a record's reader is asked about it, behind the record's context."""

    method: str
    question: tuple[int, ...]
    targets: tuple[int, ...]

    def encoding(self) -> Encoding:
        """In one teacher-forced pass."""
        first = len(self.question) - 1
        positions = tuple(range(first, first + len(self.targets)))
        return Encoding(Question(self.question), positions, self.targets)


class Answers:
    """The answers of an edited model, its memory included."""

    def __init__(self, site: Site) -> None:
        self.site = site

    @property
    def recall(self) -> Recall:
        """How the model finds and reads its records. Raises ModelError for one that cannot."""
        return recall_of(self.site.edited)

    @property
    def is_routed(self) -> bool:
        """Whether any input can be about a record."""
        return len(self.site.edited.memory) > 0

    def text(self, encoding: Encoding) -> str:
        """The input of a probe, as the scope sees it."""
        return self.recall.text(encoding.question.ids)

    def read(self, place: int, encoding: Encoding) -> Read | None:
        """A probe that is about the record at a place; None where the context leaves it no room,
        so that the model answers by itself."""
        recall = self.recall
        question = recall.question(place, encoding.question.ids)
        if not recall.room(question):
            return None
        method = self.site.edited.memory.readings[place].method
        return Read(method, question, encoding.targets)

    def routes(self, encodings: Sequence[Encoding]) -> list[Route | None]:
        """The record that each of these probes is about; None where the model itself answers."""
        if not self.is_routed:
            return [None] * len(encodings)
        return self.recall.routes([self.text(encoding) for encoding in encodings])

    # -- whether probes are right

    def is_right(self, encoding: Encoding, rows: Rows) -> bool:
        """Whether a probe is right, from its rows where no record answers it."""
        (read,) = self._routed([encoding])
        return self.site.is_right(encoding, rows) if read is None else self.judge_read([read])[0]

    def are_all_right(self, encodings: Sequence[Encoding], count: int, rows: Rows) -> bool:
        """Whether the first `count` of some probes are right, from the rows of all."""
        if count == 1:
            return self.is_right(encodings[0], rows)
        return all(self.are_right(encodings, rows, range(count)))

    def are_right(
        self, encodings: Sequence[Encoding], rows: Rows, chosen: Sequence[int]
    ) -> list[bool]:
        """Whether these of some probes are right, where no record answers them from the rows of
        all; see `Site.are_right`."""
        reads = self._routed([encodings[i] for i in chosen])
        return self._with_readers(
            reads, dict(enumerate(self.site.are_right(encodings, rows, chosen)))
        )

    def with_own(self, encodings: Sequence[Encoding], own: Sequence[bool]) -> list[bool]:
        """Which probes are right, where the model's own outcomes are known: only what a record
        answers is judged."""
        return self._with_readers(self._routed(encodings), dict(enumerate(own)))

    def judge_in_full(self, encodings: Sequence[Encoding]) -> list[bool]:
        """Which probes are right, by full forward passes of whoever answers them."""
        reads = self._routed(encodings)
        own = [i for i, read in enumerate(reads) if read is None]
        judged = self.site.judge_in_full([encodings[i] for i in own])
        return self._with_readers(reads, dict(zip(own, judged, strict=True)))

    def _with_readers(self, reads: Sequence[Read | None], own: Mapping[int, bool]) -> list[bool]:
        """The outcomes of probes by whoever answers them: the model's own are known."""
        routed = {i: read for i, read in enumerate(reads) if read is not None}
        judged = zip(routed, self.judge_read(list(routed.values())), strict=True)
        found = {**own, **dict(judged)}
        return [found[i] for i in range(len(reads))]

    def judge_read(self, reads: Sequence[Read]) -> list[bool]:
        """Which of these are answered rightly by their readers. An answer that is longer than the
        room behind its question is not."""
        found = [False] * len(reads)
        for method in sorted({read.method for read in reads}):
            chosen = [
                i
                for i, read in enumerate(reads)
                if read.method == method and len(read.targets) <= self.recall.room(read.question)
            ]
            with self.recall.reading(method) as model:
                judged = self.site.judge_in_full([reads[i].encoding() for i in chosen], model)
            for i, right in zip(chosen, judged, strict=True):
                found[i] = right
        return found

    # -- what is answered

    def greedily(self, encoding: Encoding) -> tuple[int, ...]:
        """What whoever answers a probe's input says in the place of its targets, without a stop."""
        (read,) = self._routed([encoding])
        if read is None or len(read.targets) > self.recall.room(read.question):
            return self.site.greedily(encoding)
        with self.recall.reading(read.method) as model:
            return self.site.greedily(read.encoding(), model)

    def _routed(self, encodings: Sequence[Encoding]) -> list[Read | None]:
        """The probes that a record answers; None for the others."""
        if not self.is_routed:
            return [None] * len(encodings)
        return [
            None if route is None else self.read(route.place, encoding)
            for route, encoding in zip(self.routes(encodings), encodings, strict=True)
        ]
