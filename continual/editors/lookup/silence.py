"""The tokens on which a new record stays silent, as directions of their keys.

They are remembered as for any gate at an inner place, but as the model stands: read again when an
edit below has moved them, while records at the place itself move no key there. Knows tokens and
directions; leaves the width of a gate to `gates`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from continual.editors.protected_tokens import ProtectedTokens
from continual.effects import Reach
from continual.effects.places import GatePlace
from continual.proposals import Edit, KnownAnswers
from continual.queries.memory import ProtectedQueries
from continual.site import Site
from continual.site.tokens import token_queries
from continual.tasks import Encoding, Question


class SilentTokens(ProtectedTokens):
    """The directions of remembered tokens at one place of a model."""

    def __init__(self, site: Site, place: GatePlace) -> None:
        super().__init__(site, place)
        self._state = ""  # of the model at which the directions were last known to hold

    def memory(self, known_answers: KnownAnswers) -> ProtectedQueries:
        """Return the memory of all texts and edits in `known_answers`, brought up to date with the
        model as it stands. A training probe that states a corrected fact is left out."""
        edited = self.site.edited
        since = edited.since(self._state)
        if since is None or _moves_keys(since.reach, self.place):
            self.forget_all()
        self._state = edited.fingerprint
        memory = super().memory(known_answers)
        self._contradict(known_answers.stating)
        return memory

    def queries(self, encodings: Sequence[Encoding]) -> list[Tensor]:
        """Return the keys [T, d_k] of each text's tokens, of length 1, as the model stands. A key
        of zeros stays as it is."""
        queries = token_queries(self.site, encodings, [self.place])[self.place]
        return [functional.normalize(part.clone(), dim=1) for part in queries]

    def around(self, edit: Edit) -> Tensor:
        """Return the directions [r, d_k] of the tokens of an edit's neighbours, and of those behind
        its answer: tokens of the prompt and of the answer themselves are left out."""
        row_texts = None if edit.near is None else edit.near.texts
        texts = list(dict.fromkeys(ids for ids, _ in row_texts.prefixes)) if row_texts else []
        parts = self.queries([Encoding(Question(ids), (), ()) for ids in texts]) if texts else []
        tails = [part[_said(ids, edit) :] for ids, part in zip(texts, parts, strict=True)]
        return torch.cat([self._no_queries, *tails])


def _moves_keys(reach: Reach, place: GatePlace) -> bool:
    """Tell whether effects of this reach may move the keys of an FFN."""
    return any(p.value_block < place.block for p in reach.gates) or any(
        block <= place.block for block in reach.blocks
    )


def _said(ids: Sequence[int], edit: Edit) -> int:
    """Return the number of tokens of an edit's prompt and answer with which a text begins; 0 for a
    text that does not begin with the whole prompt."""
    for encoding in edit.encodings[: edit.forms]:
        if tuple(ids[: len(encoding.question.ids)]) == encoding.question.ids:
            pairs = enumerate(zip(ids, encoding.ids, strict=False))
            end = min(len(ids), len(encoding.ids))
            return next((i for i, (token, own) in pairs if token != own), end)
    return 0
