"""The queries of all tokens of the probes, at the places that have gates, in a byte a number.

A gate at an inner block can open on any token of an input. So a probe's tokens are kept at each
such place, rounded; their bounds say which probes a new gate may touch. Only these probes are run
again, through the whole model, and their tokens are kept anew.

Knows tokens and places; leaves the outcomes of probes to the ledger.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from continual.effects import GatedEffect
from continual.effects.places import GatePlace
from continual.queries.coded_rows import CodedRows
from continual.queries.growing import GrowingTensor
from continual.site.tokens import token_queries
from continual.task_model import TaskModel
from continual.tasks import Encoding

ROUNDING = 2.0**-14
"""More than float32 loses in a product, as a share of ‖q‖‖k‖."""


class PlaceQueries:
    """The queries of one place, on the CPU; see `KeptQueries`."""

    def __init__(self, queries: Tensor) -> None:
        """`queries` [m, d] float32."""
        self._codes = CodedRows(queries.new_empty(queries.shape[1]))
        self._squares = GrowingTensor(queries.new_empty(0))
        self._longest = 0.0
        self.append(queries)

    def __len__(self) -> int:
        return len(self._squares)

    @property
    def squares(self) -> Tensor:
        """[m] ‖x‖² of each query."""
        return self._squares.rows

    def append(self, queries: Tensor) -> None:
        """Put queries [r, d] at the end."""
        self._codes.append(queries)
        self._squares.append(self._seen(queries))

    def put(self, index: Tensor, queries: Tensor) -> None:
        """Put other queries [r, d] in the places `index` [r]."""
        self._codes.put(index, queries)
        self._squares[index] = self._seen(queries)

    def _seen(self, queries: Tensor) -> Tensor:
        squares: Tensor = queries.square().sum(1)
        if len(squares):
            self._longest = max(self._longest, float(squares.max()) ** 0.5)
        return squares

    def bounds(self, keys: Tensor) -> Tensor:
        """Return upper bounds [n, m] of x·k for keys [n, d]; see `KeptQueries.bounds`."""
        lengths: Tensor = torch.linalg.vector_norm(keys, dim=1)
        return self._codes.bounds(keys) + (ROUNDING * self._longest * lengths)[:, None]


class KeptTokens:
    """The tokens of a growing list of probes, at the watched places.

    Probes in one text share its tokens.
    """

    def __init__(self, model: TaskModel) -> None:
        self._model = model
        self._places: dict[GatePlace, PlaceQueries] = {}
        self._sequences: list[Encoding] = []  # one probe of each sequence
        self._numbers: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        self._probes = GrowingTensor(torch.empty(0, dtype=torch.long))  # the sequence of each
        self._tokens = GrowingTensor(torch.empty(0, dtype=torch.long))  # the sequence of each
        self._firsts: list[int] = []  # the first token of each sequence

    def __len__(self) -> int:
        """Count the probes."""
        return len(self._probes)

    @property
    def places(self) -> Collection[GatePlace]:
        """The watched places."""
        return self._places.keys()

    def add(self, encodings: Iterable[Encoding]) -> None:
        """Append probes, read by the model as it stands."""
        start = len(self._sequences)
        numbers = [self._number(encoding) for encoding in encodings]
        self._probes.append(torch.tensor(numbers, dtype=torch.long))
        sequences = self._sequences[start:]
        for place, queries in self._read(sequences, list(self._places)).items():
            self._places[place].append(queries)

    def _number(self, encoding: Encoding) -> int:
        key = encoding.ids, encoding.question.source
        if key not in self._numbers:
            number = self._numbers[key] = len(self._sequences)
            self._sequences.append(encoding)
            self._firsts.append(len(self._tokens))
            self._tokens.append(torch.full((len(encoding.ids),), number))
        return self._numbers[key]

    def watch(self, places: Iterable[GatePlace]) -> None:
        """Keep queries at these places alone, and read missing ones by the model as it stands. A
        place may have gates already: these do not change the queries there."""
        gate_places = list(places)
        self._places = {place: q for place, q in self._places.items() if place in gate_places}
        missing_places = [place for place in gate_places if place not in self._places]
        for place, queries in self._read(self._sequences, missing_places).items():
            self._places[place] = PlaceQueries(queries)

    def forget(self) -> None:
        """Drop all queries: they are no longer those of the model."""
        self._places = {}

    def touched(self, effect: GatedEffect, first: int) -> Tensor:
        """Return the probes [p], ascending, on which an effect at a watched place may differ from
        its first `first` pieces alone."""
        tokens = effect.may_differ(self._places[effect.place], first)
        sequences = self._tokens.rows[tokens].unique()
        return torch.isin(self._probes.rows, sequences).nonzero().squeeze(-1)

    def renew(self, probes: Tensor) -> None:
        """Read the queries of these probes [p] again, by the model as it stands."""
        sequences = self._probes.rows[probes].unique().tolist()
        encodings = [self._sequences[number] for number in sequences]
        spans = [
            range(self._firsts[n], self._firsts[n] + len(e.ids))
            for n, e in zip(sequences, encodings, strict=True)
        ]
        index = torch.tensor([token for span in spans for token in span], dtype=torch.long)
        for place, queries in self._read(encodings, list(self._places)).items():
            self._places[place].put(index, queries)

    def _read(
        self, sequences: Sequence[Encoding], places: Sequence[GatePlace]
    ) -> dict[GatePlace, Tensor]:
        """Return the queries [tokens, d] of sequences at each place, one after another."""
        if not places:
            return {}
        if not sequences:
            mount = self._model.edited.mount
            return {place: torch.empty(0, mount(place).query_width) for place in places}
        queries = token_queries(self._model, sequences, places)
        return {place: torch.cat(parts).cpu() for place, parts in queries.items()}
