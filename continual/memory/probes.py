"""Probes that a record may answer: their routes and outcomes, followed as records come and go.

A probe is judged again only when another record answers it; a reader is never edited, so that all
other outcomes hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from continual.memory.answers import AnswerJudge, Read
from continual.memory.routing import NOBODY, Route, RoutedInputs
from continual.queries.growing import GrowingTensor
from continual.tasks import Encoding


class RoutedProbes:
    """Probes in the order in which they came."""

    def __init__(self, answers: AnswerJudge) -> None:
        self._answers = answers
        self._encodings: list[Encoding] = []
        self._routes = self._new_routes()
        flags = torch.empty(0, dtype=torch.bool)
        self._routed, self._right = GrowingTensor(flags), GrowingTensor(flags)

    def __len__(self) -> int:
        return len(self._encodings)

    def effective(self, own: Tensor) -> Tensor:
        """Return [n] bool: true for each right probe. `own` [n] has the model's own outcomes."""
        return torch.where(self._routed.rows, self._right.rows, own)

    def route(self, index: int) -> Route | None:
        """Return the record that answers a probe; None where the model does."""
        return self._routes.route(index) if bool(self._routed.rows[index]) else None

    def add(self, encodings: Sequence[Encoding]) -> None:
        """Take in probes, routed and judged as the model stands."""
        start = len(self)
        self._encodings += encodings
        flags = torch.zeros(len(encodings), dtype=torch.bool)
        self._routed.append(flags)
        self._right.append(flags)
        self._embed(self._routes, encodings)
        self._judge(torch.arange(start, len(self)))

    def advance(self) -> None:
        """Follow the records that came and went."""
        self._judge(self._routes.advance())

    def remeasure(self) -> None:
        """Route every probe anew, and judge every routed one anew."""
        self._routes = self._new_routes()
        self._embed(self._routes, self._encodings)
        self._judge(torch.arange(len(self)))

    def _new_routes(self) -> RoutedInputs:
        answers = self._answers
        return RoutedInputs(answers.site.edited.memory, answers.recall.require_scope())

    def _embed(self, routes: RoutedInputs, encodings: Sequence[Encoding]) -> None:
        texts = [self._answers.text(encoding) for encoding in encodings]
        routes.add(self._answers.recall.scope.queries(texts))

    def _judge(self, index: Tensor) -> None:
        """Judge these probes under the routes that they have now."""
        winners = self._routes.winners[index].tolist()
        reads: dict[int, Read] = {}
        for place, winner in zip(index.tolist(), winners, strict=True):
            read = None if winner == NOBODY else self._answers.read(winner, self._encodings[place])
            if read is not None:
                reads[place] = read
        self._routed[index] = False
        if reads:
            read_index = torch.tensor(list(reads))
            self._routed[read_index] = True
            self._right.rows[read_index] = torch.tensor(
                self._answers.judge_read(list(reads.values()))
            )
