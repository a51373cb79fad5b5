"""The model's answers to the outside: by a record if the input is about one, else as the model is.

With an empty memory these are the answers of `Site`, by the same passes. Knows whether a record or
the model answers; leaves the search for a record to the scope, and reading it to `recall`.
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
    """A probe behind a record's context, as the record's reader gets it."""

    method: str
    question: tuple[int, ...]
    targets: tuple[int, ...]

    def encoding(self) -> Encoding:
        """Return the probe as one teacher-forced pass."""
        start = len(self.question) - 1
        positions = tuple(range(start, start + len(self.targets)))
        return Encoding(Question(self.question), positions, self.targets)


class AnswerJudge:
    """The answers of an edited model, its memory included."""

    def __init__(self, site: Site) -> None:
        self.site = site

    @property
    def recall(self) -> Recall:
        """The part that finds and reads the model's records. Raises ModelError if there is none."""
        return recall_of(self.site.edited)

    @property
    def is_routed(self) -> bool:
        """True if any input can be about a record."""
        return len(self.site.edited.memory) > 0

    def text(self, encoding: Encoding) -> str:
        """Return the input of a probe, as the scope sees it."""
        return self.recall.text(encoding.question.ids)

    def read(self, place: int, encoding: Encoding) -> Read | None:
        """Return a probe as the reader of the record at `place` gets it; None where the context
        leaves it no room, so that the model answers by itself."""
        recall = self.recall
        question = recall.question(place, encoding.question.ids)
        if not recall.room(question):
            return None
        method = self.site.edited.memory.readings[place].method
        return Read(method, question, encoding.targets)

    def routes(self, encodings: Sequence[Encoding]) -> list[Route | None]:
        """Return the record that each of these probes is about; None if the model itself
        answers."""
        if not self.is_routed:
            return [None] * len(encodings)
        return self.recall.routes([self.text(encoding) for encoding in encodings])

    # -- judging probes

    def is_right(self, encoding: Encoding, rows: Rows) -> bool:
        """Tell whether a probe is right; `rows` are its rows, used where no record answers it."""
        (read,) = self._routed([encoding])
        return self.site.is_right(encoding, rows) if read is None else self.judge_read([read])[0]

    def are_all_right(self, encodings: Sequence[Encoding], count: int, rows: Rows) -> bool:
        """Tell whether the first `count` of some probes are right; `rows` are the rows of all."""
        if count == 1:
            return self.is_right(encodings[0], rows)
        return all(self.are_right(encodings, rows, range(count)))

    def are_right(
        self, encodings: Sequence[Encoding], rows: Rows, chosen: Sequence[int]
    ) -> list[bool]:
        """Tell for each of the `chosen` probes whether it is right. Where no record answers it, the
        `rows` of all probes decide; see `Site.are_right`."""
        reads = self._routed([encodings[i] for i in chosen])
        return self._with_readers(
            reads, dict(enumerate(self.site.are_right(encodings, rows, chosen)))
        )

    def with_own(self, encodings: Sequence[Encoding], own: Sequence[bool]) -> list[bool]:
        """Tell for each probe whether it is right, given the model's `own` outcomes. Only probes
        that a record answers are judged."""
        return self._with_readers(self._routed(encodings), dict(enumerate(own)))

    def judge_in_full(self, encodings: Sequence[Encoding]) -> list[bool]:
        """Tell for each probe whether it is right, by full forward passes of whoever answers it."""
        reads = self._routed(encodings)
        indices = [i for i, read in enumerate(reads) if read is None]
        outcomes = self.site.judge_in_full([encodings[i] for i in indices])
        return self._with_readers(reads, dict(zip(indices, outcomes, strict=True)))

    def _with_readers(self, reads: Sequence[Read | None], own: Mapping[int, bool]) -> list[bool]:
        """Merge the readers' outcomes with the model's `own`, which are known."""
        reads_by_index = {i: read for i, read in enumerate(reads) if read is not None}
        reader_outcomes = zip(
            reads_by_index, self.judge_read(list(reads_by_index.values())), strict=True
        )
        outcomes = {**own, **dict(reader_outcomes)}
        return [outcomes[i] for i in range(len(reads))]

    def judge_read(self, reads: Sequence[Read]) -> list[bool]:
        """Tell for each read whether its reader answers it rightly. An answer longer than the room
        behind its question is not right."""
        outcomes = [False] * len(reads)
        for method in sorted({read.method for read in reads}):
            indices = [
                i
                for i, read in enumerate(reads)
                if read.method == method and len(read.targets) <= self.recall.room(read.question)
            ]
            with self.recall.reading(method) as model:
                judgements = self.site.judge_in_full([reads[i].encoding() for i in indices], model)
            for i, is_right in zip(indices, judgements, strict=True):
                outcomes[i] = is_right
        return outcomes

    # -- answering

    def greedily(self, encoding: Encoding) -> tuple[int, ...]:
        """Return greedy tokens in the place of a probe's targets, by whoever answers it, without a
        stop."""
        (read,) = self._routed([encoding])
        if read is None or len(read.targets) > self.recall.room(read.question):
            return self.site.greedily(encoding)
        with self.recall.reading(read.method) as model:
            return self.site.greedily(read.encoding(), model)

    def _routed(self, encodings: Sequence[Encoding]) -> list[Read | None]:
        """Return the reads of the probes that a record answers; None for the others."""
        if not self.is_routed:
            return [None] * len(encodings)
        return [
            None if route is None else self.read(route.place, encoding)
            for route, encoding in zip(self.routes(encodings), encodings, strict=True)
        ]
