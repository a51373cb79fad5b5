"""What the editors of the memory share: requests become records, with a context to read them by.

Knows how a record is proposed. What its context says, and who reads it, is each method's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from continual.effects.records import Reading, Record
from continual.memory.answers import Answers, Read
from continual.patches import Patch
from continual.patches.memory import MemoryPatch
from continual.proposals import Edit, Proposal, Surroundings


class MemoryEditor(ABC):
    """A method that keeps a request as a text beside the untouched model."""

    name: ClassVar[str]
    attempts: int = 1
    tolerance = 0.0
    splits = False
    crowds = False
    narrows = False

    @abstractmethod
    def contexts(self, edits: Sequence[Edit], answers: Answers, attempt: int) -> list[str]:
        """What is read in front of an input that is about each of the edits, at this attempt."""

    def edit(self, edits: Sequence[Edit], around: Surroundings) -> Proposal:
        """See `Editor.edit`. A record is proposed where its own prompt is answered rightly with it;
        for no others is the encoder asked for anything."""
        answers = Answers(around.site)
        contexts = self.contexts(edits, answers, around.attempt)
        failed = self._unread(edits, contexts, answers)
        kept = [(e, c) for e, c in zip(edits, contexts, strict=True) if e.id not in failed]
        if not kept:
            return Proposal(None, failed)
        scope = answers.recall.require_scope()
        records = [_record(edit) for edit, _ in kept]
        readings = tuple(Reading(self.name, context) for _, context in kept)
        patch = MemoryPatch(scope.records(records), readings, scope.fingerprint)
        return Proposal(patch, failed, {edit.id: {"records": 1} for edit, _ in kept})

    def objection(self, patch: Patch, edits: Sequence[Edit], around: Surroundings) -> str | None:
        """A record weighs nothing: none."""
        return None

    def _unread(
        self, edits: Sequence[Edit], contexts: Sequence[str], answers: Answers
    ) -> dict[str, str]:
        """Why some of the edits cannot be answered even with the right record at hand."""
        recall = answers.recall
        reads = [
            Read(
                self.name,
                recall.behind(context, edit.encodings[0].question.ids),
                edit.encodings[0].targets,
            )
            for edit, context in zip(edits, contexts, strict=True)
        ]
        right = answers.judge_read(reads)
        wrong = [(e, r) for e, r, ok in zip(edits, reads, right, strict=True) if not ok]
        return {
            edit.id: _MISREAD if recall.room(read.question) >= len(read.targets) else _NO_ROOM
            for edit, read in wrong
        }


_MISREAD = "it is not answered rightly even with the correction in front of it"
_NO_ROOM = "the correction and its prompt together are longer than the model reads"


def _record(edit: Edit) -> Record:
    request = edit.request
    return Record(edit.id, str(request.prompt), request.target_new, request.subject)
