"""The IKE editor: chooses the demonstrations that stand in front of a new fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from continual.editors.ike.config import IkeConfig
from continual.effects.records import Record
from continual.memory.answers import AnswerJudge
from continual.memory.contexts import context, demonstrations, joined
from continual.memory.editor import MemoryEditor
from continual.memory.recall import Recall
from continual.proposals import Edit
from continual.requests import Request
from continual.streams import open_stream


@dataclass(frozen=True)
class _Shown:
    """The requests that can be demonstrated, and the embeddings [n, d] of their facts."""

    requests: tuple[Request, ...]
    embeddings: Tensor


class Ike(MemoryEditor):
    """An editor in memory: in scope, the base model reads demonstrations, the new fact, the input.

    The demonstrations are the nearest to the new fact (section 3.2); they are chosen when the edit
    is made, and kept with it. If they lead the model astray, each retry has half as many, and the
    last one none.
    """

    name = "ike"

    def __init__(self, config: IkeConfig | None = None) -> None:
        self.config = config or IkeConfig()
        self._embedded: _Shown | None = None
        is_shown = self.config.demonstrations is not None
        self.attempts = 1 + (self.config.count.bit_length() if is_shown else 0)

    def contexts(self, edits: Sequence[Edit], answers: AnswerJudge, attempt: int) -> list[str]:
        """Return the demonstrations and the new fact of each edit, as one text."""
        form, recall = self.config.form, answers.recall
        facts = [context(form, str(e.request.prompt), e.request.target_new) for e in edits]
        count = self.config.count >> attempt
        if not self._requests or not count:
            return facts
        return [
            self._fitting(self._nearest(edit.request, count, recall), fact, recall)
            for edit, fact in zip(edits, facts, strict=True)
        ]

    @cached_property
    def _requests(self) -> tuple[Request, ...]:
        """The demonstration set. Raises StreamError for a file that cannot be read."""
        name = self.config.demonstrations
        if name is None:
            return ()
        return tuple(request for item in open_stream(name) for request in item.requests)

    def _shown(self, recall: Recall) -> _Shown:
        if self._embedded is None:
            records = [Record(r.id, str(r.prompt), r.target_new, r.subject) for r in self._requests]
            embeddings = recall.require_scope().records(records).embeddings
            self._embedded = _Shown(self._requests, embeddings)
        return self._embedded

    def _nearest(self, request: Request, count: int, recall: Recall) -> list[str]:
        """Return demonstrations of every kind, the nearest first; none is about the request's own
        fact."""
        pool = self._shown(recall)
        similarities = recall.scope.queries([str(request.prompt)]).similarity(pool.embeddings)[0]
        order = similarities.argsort(descending=True, stable=True).tolist()
        ranking = [pool.requests[i] for i in order if pool.requests[i].key != request.key]
        counts = self.config.kinds(count)
        picks: dict[str, list[str]] = {kind: [] for kind in counts}
        for candidate in ranking:
            offers = demonstrations(self.config.form, candidate)
            for kind, count in counts.items():
                if offers[kind] and len(picks[kind]) < count:
                    picks[kind].append(offers[kind][0])
        return _mixed(list(picks.values()))

    def _fitting(self, shown: list[str], told: str, recall: Recall) -> str:
        """Join as many demonstrations as fit `tokens_max` with the fact; the nearest stand last."""
        while shown and len(recall.tokens(joined(shown[::-1], told))) > self.config.tokens_max:
            shown = shown[:-1]
        return joined(shown[::-1], told)


def _mixed(kinds: Sequence[Sequence[str]]) -> list[str]:
    """Interleave the kinds of demonstrations, so that a budget cuts the furthest of each."""
    longest = max((len(kind) for kind in kinds), default=0)
    return [kind[i] for i in range(longest) for kind in kinds if i < len(kind)]
