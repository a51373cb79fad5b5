"""The edit and prove stages: each request goes from editor to editor until one gets it right.

A proposal is put on the model and proved there: finite, of fitting shapes, inside its norm budget,
and every request in it right. What fails is tried again on a larger budget, alone, then by the
next editor of the chain, and is failed, with the reason, when the chain ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from continual import retention
from continual.editors import Editor, Surroundings
from continual.errors import EditError
from continual.patches import Patch
from continual.planning import PlannedEdit
from continual.query_memory import QueryMemory
from continual.retention import Outcome
from continual.site import Site


@dataclass
class _Progress:
    """Where the edits of a step are. The patches proved so far are on the model."""

    pending: dict[str, PlannedEdit]
    applied: list[PlannedEdit] = field(default_factory=list)
    parts: list[Patch] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def accept(
        self, edit: PlannedEdit, editor: str, attempt: int, notes: Mapping[str, object]
    ) -> None:
        """Record that an edit is applied."""
        self.applied.append(self.pending.pop(edit.id))
        self.outcomes[edit.id] = Outcome(
            edit.id,
            retention.APPLIED,
            editor=editor,
            attempt=attempt,
            supersedes=edit.supersedes,
            repair=edit.repair,
            notes=notes,
        )


@dataclass(frozen=True)
class Edited:
    """The proven parts of a step's patch, on the model as one, and the outcome of every edit."""

    parts: tuple[Patch, ...]
    outcomes: tuple[Outcome, ...]


class Workshop:
    """Runs edits through a chain of editors, on the model at head."""

    def __init__(self, site: Site, memory: QueryMemory, chain: Sequence[Editor], seed: int) -> None:
        self._site, self._memory, self._chain, self._seed = site, memory, chain, seed

    def edit(self, edits: Sequence[PlannedEdit], seq: int) -> Edited:
        """All edits of step `seq`. The result is on the model; nothing else is."""
        model = self._site.edited
        depth = model.depth
        progress = _Progress({edit.id: edit for edit in edits})
        try:
            for editor in self._chain:
                for attempt in range(editor.attempts):
                    self._attempt(progress, editor, attempt, seq)
        except BaseException:
            model.take_off(depth)
            raise
        finally:
            for edit in progress.applied:
                self._memory.forget(edit.id)
        if len(progress.parts) != 1:  # a single part is on as the step's patch already
            model.take_off(depth)
            model.put(progress.parts)
        outcomes = {**progress.outcomes, **_failures(progress)}
        return Edited(tuple(progress.parts), tuple(outcomes[edit.id] for edit in edits))

    def _attempt(self, progress: _Progress, editor: Editor, attempt: int, seq: int) -> None:
        """All pending edits together at first, each alone when it has failed before."""
        pending = list(progress.pending.values())
        groups = [pending] if attempt == 0 else [[edit] for edit in pending]
        for number, group in enumerate(groups):
            generator = torch.Generator().manual_seed(
                _derived_seed(self._seed, seq, editor.name, attempt, number)
            )
            around = Surroundings(self._site, self._memory, generator, attempt)
            while group:
                group = self._try(progress, editor, around, group)

    def _try(
        self,
        progress: _Progress,
        editor: Editor,
        around: Surroundings,
        group: Sequence[PlannedEdit],
    ) -> list[PlannedEdit]:
        """One proposal, kept if it is proved; else the edits worth another one without the rest."""
        proposal = editor.edit([edit.edit() for edit in group], around)
        progress.reasons.update(proposal.failed)
        kept = [edit for edit in group if edit.id not in proposal.failed]
        if not kept:
            return []
        parts = [] if proposal.patch is None else [proposal.patch]  # none: it was right already
        norm_max = editor.norm_max([edit.edit() for edit in kept], around)
        wrong = _over_budget(parts, kept, norm_max) or self._prove(progress, parts, kept)
        if not wrong:
            progress.parts += parts
            for edit in kept:
                notes = proposal.notes.get(edit.id, {})
                progress.accept(edit, editor.name, around.attempt + 1, notes)
                self._memory.remember(edit.id, edit.rows.query)  # for the rest of this step
            return []
        progress.reasons.update(wrong)
        return [edit for edit in kept if edit.id not in wrong]

    def _prove(
        self, progress: _Progress, parts: Sequence[Patch], edits: Sequence[PlannedEdit]
    ) -> dict[str, str]:
        """Reasons by request; none, and the patch stays on. Otherwise it is off again."""
        self._site.edited.put(parts)
        wrong = {
            edit.id: "its own prompt is still not answered rightly with the patch on"
            for edit in edits
            if not self._is_right(edit)
        }
        if not wrong and not all(map(self._is_right, progress.applied)):
            reason = "its patch takes the right answer from another request of the same step"
            wrong = {edit.id: reason for edit in edits}
        if wrong:
            self._site.edited.take_off(self._site.edited.depth - 1)
        return wrong

    def _is_right(self, edit: PlannedEdit) -> bool:
        return self._site.is_right(edit.candidate.learned[0], edit.rows)


def _over_budget(
    parts: Sequence[Patch], edits: Sequence[PlannedEdit], norm_max: float
) -> dict[str, str]:
    """Reasons by request where a part is not sound, or larger than it may be."""
    for part in parts:
        try:
            part.check()
        except EditError as error:
            return {edit.id: str(error) for edit in edits}
        if part.norm() > norm_max:
            reason = f"its patch has norm {part.norm():.3g}, over the budget of {norm_max:.3g}"
            return {edit.id: reason for edit in edits}
    return {}


def _failures(progress: _Progress) -> dict[str, Outcome]:
    return {
        identity: Outcome(
            identity,
            retention.FAILED,
            reason=progress.reasons.get(identity, "no editor proposed a patch for it"),
            supersedes=edit.supersedes,
            repair=edit.repair,
        )
        for identity, edit in progress.pending.items()
    }


def _derived_seed(*parts: object) -> int:
    """A seed of its own for every use, the same whenever the run is repeated or resumed."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
