"""The tokens on which a new gate at an inner place stays silent, as the queries that they show.

A gate there can open on any token of a text, so all tokens of training probes, of general text and
of the edits in force are remembered. Knows texts and their queries; leaves gates to the editors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from continual.effects.places import GatePlace
from continual.proposals import Edit, KnownAnswers
from continual.queries.memory import ProtectedQueries
from continual.site import Site
from continual.site.tokens import token_queries
from continual.tasks import Encoding, Question


class ProtectedTokens:
    """The base's queries, at a place, of all tokens on which new neurons stay silent.

    They are read once; each further edit costs one pass over its prompt.
    """

    def __init__(self, site: Site, place: GatePlace) -> None:
        self.site, self.place = site, place
        self._known_answers: tuple[tuple[Encoding, ...], tuple[tuple[int, ...], ...]] | None = None
        self._edits: dict[str, tuple[Encoding, Tensor]] = {}  # queries by owner
        self._memory = ProtectedQueries(self._no_queries)
        self._firsts: list[int] = []  # the first row of each training probe

    def forget_all(self) -> None:
        """Drop all queries: they are no longer those of the model."""
        self._known_answers, self._edits = None, {}
        self._memory = ProtectedQueries(self._no_queries)

    def memory(self, known_answers: KnownAnswers) -> ProtectedQueries:
        """Return the memory of all texts and edits in `known_answers`, brought up to date."""
        texts = known_answers.training, known_answers.general
        if self._known_answers != texts or not self._continues(known_answers.edits):
            self._read(known_answers)
            self._known_answers = texts
        self._contradict(known_answers.contradicted)
        for owner in [owner for owner in self._memory.owners if owner not in known_answers.edits]:
            self._memory.forget(owner)
        for owner in [owner for owner in known_answers.edits if owner not in self._memory.owners]:
            self._memory.remember(owner, self._of_edit(owner, known_answers.edits[owner]))
        return self._memory

    def _contradict(self, numbers: Iterable[int]) -> None:
        """Drop the tokens of these training probes."""
        for number in numbers:
            self._memory.contradict(range(self._firsts[number], self._firsts[number + 1]))

    def _continues(self, edits: Mapping[str, Encoding]) -> bool:
        """Tell whether `edits` begin with the remembered ones, in their order."""
        common_owners = [owner for owner in self._memory.owners if owner in edits]
        return common_owners == list(edits)[: len(common_owners)]

    def _read(self, known_answers: KnownAnswers) -> None:
        general = [Encoding(Question(ids), (), ()) for ids in known_answers.general]
        encodings = [*known_answers.training, *general]
        sizes = [len(encoding.ids) for encoding in encodings]
        self._firsts = list(accumulate(sizes, initial=0))
        parts = self.queries(encodings) if encodings else []
        self._memory = ProtectedQueries(torch.cat([self._no_queries, *parts]))

    @property
    def _no_queries(self) -> Tensor:
        edited = self.site.edited
        return torch.empty(0, edited.mount(self.place).query_width, device=edited.device)

    def _of_edit(self, owner: str, encoding: Encoding) -> Tensor:
        entry = self._edits.get(owner)
        if entry is None or entry[0] != encoding:
            entry = self._edits[owner] = encoding, self.queries([encoding])[0]
        return entry[1]

    def queries(self, encodings: Sequence[Encoding]) -> list[Tensor]:
        """Return the queries [T, d] of each text's tokens, in the base state."""
        with self.site.edited.bare():
            return token_queries(self.site, encodings, [self.place])[self.place]

    def near(self, edits: Sequence[Edit]) -> list[Tensor]:
        """Return the queries [T, d] of the tokens of each neighbour of the edits, in the base
        state."""
        row_texts = [edit.near.texts for edit in edits if edit.near is not None]
        texts = dict.fromkeys(
            ids
            for edit_texts in row_texts
            if edit_texts is not None
            for ids, _ in edit_texts.prefixes
        )
        return self.queries([Encoding(Question(ids), (), ()) for ids in texts]) if texts else []
