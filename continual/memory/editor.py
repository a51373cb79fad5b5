"""The common part of the memory's editors: requests become records, with a context to read them by.

Knows how a record is proposed. Leaves the text of its context, and its reader, to each method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from continual.effects.records import Reading, Record
from continual.memory.answers import AnswerJudge, Read
from continual.memory.scope import Scope
from continual.patches import Patch
from continual.patches.memory import MemoryPatch
from continual.picture_marks import keys_in
from continual.proposals import Edit, EditContext, Proposal


class MemoryEditor(ABC):
    """A method that keeps a request as a text beside the untouched model."""

    name: ClassVar[str]
    attempts: int = 1
    tolerance = 0.0
    splits = False
    crowds = False
    narrows = True

    @abstractmethod
    def contexts(self, edits: Sequence[Edit], answers: AnswerJudge, attempt: int) -> list[str]:
        """Return for each edit, at this attempt, the text in front of an input that is about it."""

    def edit(self, edits: Sequence[Edit], context: EditContext) -> Proposal:
        """See `Editor.edit`. Proposes a record for each edit whose own prompt is answered rightly
        with it; only for these does the encoder embed anything."""
        answers = AnswerJudge(context.site)
        contexts = self.contexts(edits, answers, context.attempt)
        reasons = self._unread(edits, contexts, answers)
        pairs = [(e, c) for e, c in zip(edits, contexts, strict=True) if e.id not in reasons]
        if not pairs:
            return Proposal(None, reasons)
        scope = answers.recall.require_scope()
        records = [_record(edit) for edit, _ in pairs]
        if context.narrow:
            records = [
                replace(record, score_min=_score_min(edit, record, scope, answers, context.narrow))
                for (edit, _), record in zip(pairs, records, strict=True)
            ]
        readings = tuple(Reading(self.name, reading_context) for _, reading_context in pairs)
        patch = MemoryPatch(scope.records(records), readings, scope.fingerprint)
        return Proposal(patch, reasons, {edit.id: {"records": 1} for edit, _ in pairs})

    def objection(self, patch: Patch, edits: Sequence[Edit], context: EditContext) -> str | None:
        """Return None: a record weighs nothing."""
        return None

    def _unread(
        self, edits: Sequence[Edit], contexts: Sequence[str], answers: AnswerJudge
    ) -> dict[str, str]:
        """Return the reasons why some edits are not answered rightly even behind the right
        record."""
        recall = answers.recall
        reads = [
            Read(
                self.name,
                recall.behind(reading_context, edit.encodings[0].question.ids),
                edit.encodings[0].targets,
            )
            for edit, reading_context in zip(edits, contexts, strict=True)
        ]
        outcomes = answers.judge_read(reads)
        misreads = [
            (e, r) for e, r, is_right in zip(edits, reads, outcomes, strict=True) if not is_right
        ]
        return {
            edit.id: _MISREAD if recall.room(read.question) >= len(read.targets) else _NO_ROOM
            for edit, read in misreads
        }


_MISREAD = "it is not answered rightly even with the correction in front of it"
_NO_ROOM = "the correction and its prompt together are longer than the model reads"


NARROWED = 0.5
"""The share of the way from its neighbours' scores to its own that a record keeps for inputs that
nobody knows yet; each narrower retry keeps this share of it."""
_CERTAIN = 1e-6  # scores beyond it count as it: the logit of 1 is infinite


def _score_min(
    edit: Edit, record: Record, scope: Scope, answers: AnswerJudge, narrow: int
) -> float:
    """Return the least score for a record that has to leave its edit's neighbours alone: in logits,
    on the way from the highest score of a neighbour to the record's own prompt; the nearer to the
    prompt, the oftener it changed too much. 0 without neighbours."""
    questions = {answers.text(encoding): None for encoding in edit.quiet}
    pictures = keys_in(record.prompt)  # without them the record is no candidate at all
    near = (text for text in questions if keys_in(text) == pictures)
    texts = [record.prompt, *(text for text in near if text != record.prompt)]
    if len(texts) == 1:
        return 0.0
    queries, kept = scope.queries(texts), scope.records([record])
    logits = scope.scores(queries, kept, [(i, 0) for i in range(len(texts))]).double()
    own, *others = logits.clamp(_CERTAIN, 1 - _CERTAIN).logit().tolist()
    room = max(0.0, own - max(others)) * NARROWED**narrow
    return float(torch.tensor(own - room, dtype=torch.float64).sigmoid())


def _record(edit: Edit) -> Record:
    request = edit.request
    return Record(edit.id, str(request.prompt), request.target_new, request.subject)
