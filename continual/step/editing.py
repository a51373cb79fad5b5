"""The edit and prove stages: each request goes from editor to editor until one gets it right.

A proposal is put on the model and proved there: finite, of fitting shapes, inside its budget, and
its requests right. A batch over its budget is halved if the editor splits batches. A failed edit
is tried again on a larger budget, then by the next editor of the chain; when the chain ends it has
failed, with the reason. After several single edits over its budget in a row, an editor is not asked
again in the step.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import or_
from typing import Any

import torch

from continual.effects import NOTHING, Reach
from continual.errors import EditError
from continual.memory.answers import AnswerJudge
from continual.patches import Patch
from continual.proposals import Edit, EditContext, Editor, KnownAnswers, Proposal
from continual.queries.memory import ProtectedQueries
from continual.reading import named_in
from continual.recheck.ledger import Ledger
from continual.recheck.retention import Outcome
from continual.site import Site
from continual.site.rows import Rows
from continual.statistics import Statistics
from continual.step.planning import PlannedEdit
from continual.step.progress import EditGroup, EditProgress
from continual.step.watching import Harm, WatchSet
from continual.tasks import Encoding

NARROWER_MAX = 4
"""Retries of a single edit that changed too many held-out probes, each narrower than the one
before; the editor's other attempts go on from there. From the last of these retries on, the probes
that the edit changed before are in memory: it is proved against the others."""
OVER_BUDGET_MAX = 3
"""Single edits in a row over an editor's budget: the step's others then count as over it, too."""


@dataclass(frozen=True)
class ProvenEdits:
    """The proven parts of a step's patch, on the model as one, and the outcome of every edit."""

    parts: tuple[Patch, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def reach(self) -> Reach:
        """The inputs that the step may change."""
        return reduce(or_, (part.reach for part in self.parts), NOTHING)


@dataclass(frozen=True)
class EditSetup:
    """The model that edits are made on, and the memory, ledger and watch set that judge them."""

    site: Site
    memory: ProtectedQueries
    recapture: Callable[[], None]  # to call after an edit of matrices: the queries moved
    statistics: Statistics | None = None
    known_answers: Callable[[], KnownAnswers] = KnownAnswers  # the answers known to the ledger
    ledger: Ledger | None = None
    watch: WatchSet | None = None  # None: nothing is watched
    naming: Callable[[str, torch.Tensor], ProtectedQueries] | None = None
    """The memory that names a subject; see `RunState.memory_naming`."""


@dataclass(frozen=True)
class _TriedProposal:
    """A proposal, and its edits."""

    editor: Editor
    context: EditContext
    proposal: Proposal
    edits: EditGroup

    @property
    def parts(self) -> list[Patch]:
        """The proposal's patch as a list; empty if the edits were right without one."""
        return [] if self.proposal.patch is None else [self.proposal.patch]


@dataclass(frozen=True)
class _ProofResult:
    """The result of checking a proposal and proving it on the model."""

    wrong: frozenset[str] = frozenset()  # edits whose prompts are wrong with it
    broken: tuple[PlannedEdit, ...] = ()  # earlier edits of the step that it broke
    is_proved: bool = False
    objection: str | None = None  # the reason not to put it on
    harm: Harm | None = None  # the reason to take it off: too many held-out probes change

    @property
    def is_kept(self) -> bool:
        """True if the proposal stays on the model."""
        return self.is_proved and self.harm is None

    def right(self, edits: EditGroup) -> EditGroup:
        """Return the edits whose prompts are right with the proposal."""
        return [edit for edit in edits if edit.id not in self.wrong]


class EditStage:
    """Runs edits through a chain of editors, on the model at head."""

    def __init__(self, setup: EditSetup, chain: Sequence[Editor], seed: int) -> None:
        self._site, self._memory = setup.site, setup.memory
        self._setup, self._chain, self._seed = setup, chain, seed
        self._answers = AnswerJudge(setup.site)
        self._near_rows: dict[tuple[str, str], Rows | None] = {}
        self._kept: dict[str, Any] = {}  # by editors, in the step under way

    def edit(
        self, edits: Sequence[PlannedEdit], seq: int, parts: Sequence[Patch] = ()
    ) -> ProvenEdits:
        """Make all edits of step `seq`; their proven patch, and no other, stays on the model.

        `parts` are the beginning of the step's patch, on the model already as its last patch. If an
        editor raises, the model is as before the step; the caller has to build the memory anew.
        """
        self._kept = {}  # a run that is resumed begins this step with nothing kept, too
        model = self._site.edited
        depth = model.depth - bool(parts)
        progress = EditProgress({edit.id: edit for edit in edits}, model.rows_state)
        progress.parts += parts
        try:
            for editor in self._chain:
                for attempt in range(editor.attempts):
                    self._attempt(progress, editor, attempt, seq)
        except BaseException:
            model.take_off(depth)
            raise
        self._forget(progress)
        self._near_rows.clear()
        if len(progress.parts) != 1:  # a single part is on as the step's patch already
            model.take_off(depth)
            model.put(progress.parts)
        outcomes = {**progress.outcomes, **progress.failures()}
        return ProvenEdits(tuple(progress.parts), tuple(outcomes[edit.id] for edit in edits))

    def _attempt(self, progress: EditProgress, editor: Editor, attempt: int, seq: int) -> None:
        """Let an editor try the pending edits: all together in its first attempt, or in every one
        if it splits batches; each alone in its other attempts, or afterwards if edits crowd each
        other."""
        pending = list(progress.pending.values())
        groups: deque[EditGroup] = deque()
        is_joint = attempt == 0 or editor.splits
        if is_joint:
            groups.append(pending)
        if not is_joint or (editor.crowds and len(pending) > 1):
            groups += [[edit] for edit in pending]
        number = 0
        while groups:
            group = [edit for edit in groups.popleft() if edit.id in progress.pending]
            if progress.over_budget[editor.name] >= OVER_BUDGET_MAX:
                for edit in group:
                    progress.reasons.setdefault(edit.id, {}).setdefault(editor.name, _FULL)
            elif group:
                seed = _derived_seed(self._seed, seq, editor.name, attempt, number)
                generator = torch.Generator().manual_seed(seed)
                context = EditContext(
                    self._site,
                    self._memory,
                    generator,
                    attempt,
                    self._setup.statistics,
                    self._seed,
                    partial(self._known_answers, progress),
                    narrow=max(progress.narrowed[edit.id, editor.name] for edit in group),
                    kept=self._kept,
                )
                groups.extendleft(reversed(self._try(progress, editor, context, group)))
                number += 1

    def _known_answers(self, progress: EditProgress) -> KnownAnswers:
        """Return the known answers, with the edits that this step has applied so far."""
        known_answers = self._setup.known_answers()
        encodings = {
            identity: edit.encoded_request.learned[0] for identity, edit in progress.applied.items()
        }
        return replace(known_answers, edits={**known_answers.edits, **encodings})

    def _try(
        self, progress: EditProgress, editor: Editor, context: EditContext, group: EditGroup
    ) -> list[EditGroup]:
        """Make one proposal, and keep it if it is proved; return the groups worth another one."""
        tried = self._propose(progress, editor, context, group)
        if not tried.edits:
            return []
        return self._settle(progress, tried, self._judge(progress, tried))

    def _propose(
        self, progress: EditProgress, editor: Editor, context: EditContext, group: EditGroup
    ) -> _TriedProposal:
        """Let an editor propose a patch for a group, as the model stands now."""
        self._follow_matrices(progress)
        group = [edit.standing_on(self._site) for edit in group]
        edits = [self._seen(progress, editor, edit) for edit in group]
        if self._setup.watch is not None:
            context = replace(context, naming=partial(self._naming, edits))
        with self._beside(edits):
            proposal = editor.edit(edits, context)
        for identity, reason in proposal.failed.items():
            progress.refuse(identity, editor.name, reason)
        pending = [edit for edit in group if edit.id not in proposal.failed]
        return _TriedProposal(editor, context, proposal, pending)

    def _judge(self, progress: EditProgress, tried: _TriedProposal) -> _ProofResult:
        """Check a patch, put it on and prove it; take it off again if it is not kept."""
        objection = self._objection(tried)
        if objection is not None:
            return _ProofResult(objection=objection)
        failures, broken_edits = self._prove(progress, tried.parts, tried.edits)
        is_proved = len(failures) + len(broken_edits) <= tried.editor.tolerance * len(tried.edits)
        verdict = _ProofResult(frozenset(failures), tuple(broken_edits), is_proved)
        if is_proved:
            verdict = replace(verdict, harm=self._harm(tried, verdict.right(tried.edits)))
        if not verdict.is_kept:
            self._site.edited.take_off(self._site.edited.depth - 1)
        return verdict

    def _settle(
        self, progress: EditProgress, tried: _TriedProposal, verdict: _ProofResult
    ) -> list[EditGroup]:
        """Record a verdict for each edit; return the groups worth another proposal."""
        name, right_edits = tried.editor.name, verdict.right(tried.edits)
        if verdict.objection is not None:
            return self._split(progress, tried, verdict.objection)
        for edit in tried.edits:
            if edit.id in verdict.wrong:
                progress.refuse(edit.id, name, _WRONG)
        if not verdict.is_proved and verdict.broken and not verdict.wrong:
            for edit in right_edits:
                progress.refuse(edit.id, name, _TAKES)
            return []
        if not verdict.is_proved:
            return [right_edits]
        if verdict.harm is not None:
            return self._narrow(progress, tried.editor, right_edits, verdict.harm)
        self._keep(progress, tried, verdict)
        return []

    @staticmethod
    def _split(progress: EditProgress, tried: _TriedProposal, objection: str) -> list[EditGroup]:
        """Refuse a patch before it is put on; return the halves of its batch, if that may help."""
        editor, half = tried.editor, len(tried.edits) // 2
        for edit in tried.edits:
            progress.refuse(edit.id, editor.name, objection)
        progress.over_budget[editor.name] += editor.splits and not half
        return [tried.edits[:half], tried.edits[half:]] if editor.splits and half else []

    @staticmethod
    def _narrow(
        progress: EditProgress, editor: Editor, edits: EditGroup, harm: Harm
    ) -> list[EditGroup]:
        """Refuse a patch that changes too much; return the halves of its batch, or a single edit
        for a narrower retry while any are left."""
        for edit in edits:
            progress.refuse(edit.id, editor.name, harm.reason)
            progress.narrowed[edit.id, editor.name] += 1
        half = len(edits) // 2
        if half:
            return [edits[:half], edits[half:]]
        progress.changed[edits[0].id].update(dict.fromkeys(harm.changed))
        is_last = not editor.narrows or progress.narrowed[edits[0].id, editor.name] > NARROWER_MAX
        return [] if is_last else [edits]

    def _keep(self, progress: EditProgress, tried: _TriedProposal, verdict: _ProofResult) -> None:
        """Take in a patch that is proved, and reopen the earlier edits that it broke."""
        name, right_edits = tried.editor.name, verdict.right(tried.edits)
        progress.parts += tried.parts
        progress.over_budget[name] = 0
        for edit in verdict.broken:
            self._memory.forget(edit.id)
            progress.reopen(edit, name, _TAKEN)
        for edit in right_edits:
            notes = tried.proposal.notes.get(edit.id, {})
            progress.accept(edit, name, tried.context.attempt + 1, notes)
        if progress.pending:  # there is a rest of this step
            for edit in right_edits:
                self._memory.remember(edit.id, edit.rows.query)

    def _near(self, edit: PlannedEdit, changed: Sequence[Encoding]) -> Rows | None:
        """Return the rows of an edit's neighbours in memory, by the matrices as they are now, with
        those of probes that it `changed` before."""
        watch = self._setup.watch
        if watch is None or edit.neighbourhood is None:
            return None
        key = edit.id, self._site.edited.rows_state
        if key not in self._near_rows:
            self._near_rows = {key: watch.silent_rows(edit.neighbourhood), **self._near_rows}
        near = self._near_rows[key]
        if not changed:
            return near
        rows = self._site.rows(changed)
        return rows if near is None else Rows.join([near, rows])

    def _seen(self, progress: EditProgress, editor: Editor, edit: PlannedEdit) -> Edit:
        """Return an edit as an editor sees it: with its neighbours in memory, and in its last
        retries with the probes that it changed before."""
        is_late = progress.narrowed[edit.id, editor.name] >= NARROWER_MAX
        changed = list(progress.changed[edit.id]) if is_late else []
        near = self._near(edit, changed)
        if near is None or edit.neighbourhood is None:
            return edit.edit(near)
        neighbours = [passage.encoding() for passage in edit.neighbourhood.memory]
        return edit.edit(near, [*neighbours, *changed])

    @contextmanager
    def _beside(self, edits: Sequence[Edit]) -> Iterator[None]:
        """Keep the neighbours of these edits in memory within `with`."""
        queries = [edit.near.query for edit in edits if edit.near is not None]
        with self._memory.beside(torch.cat(queries)) if queries else nullcontext():
            yield

    def _naming(self, edits: Sequence[Edit], edit: Edit) -> ProtectedQueries:
        """Return the memory of a neuron that asks for an edit's subject: the queries that name it
        in the history, among the edit's neighbours, and among the other edits of its group."""
        assert self._setup.naming is not None
        subject = edit.request.named_subject
        rows = [edit.near, *(part for e in edits if e is not edit for part in e.rows)]
        queries = [_rows_naming(part, subject) for part in rows if part is not None]
        no_queries = edit.rows[0].query[:0]
        return self._setup.naming(subject, torch.cat([no_queries, *queries]))

    def _harm(self, tried: _TriedProposal, edits: EditGroup) -> Harm | None:
        """Return the harm of the last patch put on; None if it is inside the budgets."""
        watch, ledger = self._setup.watch, self._setup.ledger
        if watch is None or ledger is None or not edits:
            return None
        neighbourhoods = {e.id: e.neighbourhood for e in edits if e.neighbourhood is not None}
        spreads = any(part.reach.blocks for part in tried.parts) and tried.editor is self._chain[-1]
        return watch.harm(neighbourhoods, ledger, len(edits), spreads=spreads)

    def _forget(self, progress: EditProgress) -> None:
        """Take this step's edits out of the memory: they stand there only during the step."""
        for identity in progress.applied:
            self._memory.forget(identity)

    def _follow_matrices(self, progress: EditProgress) -> None:
        """Read the remembered queries anew if matrices were edited since the last proposal."""
        state = self._site.edited.rows_state
        if progress.state == state:
            return
        progress.state = state
        self._forget(progress)
        self._setup.recapture()
        for identity, edit in progress.applied.items():
            self._memory.remember(identity, edit.standing_on(self._site).rows.query)

    @staticmethod
    def _objection(tried: _TriedProposal) -> str | None:
        """Say why a patch is not sound or over its budget; None if it is neither."""
        patch = tried.proposal.patch
        if patch is None:
            return None
        try:
            patch.check()
        except EditError as error:
            return str(error)
        edits = [edit.edit() for edit in tried.edits]
        return tried.editor.objection(patch, edits, tried.context)

    def _prove(
        self, progress: EditProgress, parts: Sequence[Patch], edits: EditGroup
    ) -> tuple[list[str], EditGroup]:
        """Put the parts on; return the edits that are wrong with them, and the earlier edits of
        this step that they broke."""
        self._site.edited.put(parts)
        suspects = self._touched(list(progress.applied.values()), parts)
        outcomes = self._right([*edits, *suspects])
        failures = [edit.id for edit in edits if not outcomes[edit.id]]
        return failures, [edit for edit in suspects if not outcomes[edit.id]]

    def _touched(self, applied: EditGroup, parts: Sequence[Patch]) -> EditGroup:
        """Return the applied edits that these parts, which are on, may have broken. A neuron can
        break only prompts that it fires on."""
        reach = reduce(or_, (part.reach for part in parts), NOTHING)
        is_read = self._site.edited.is_read_off_rows
        if not applied or not is_read or not reach.is_rows_alone(self._site.place):
            return applied
        state = self._site.edited.rows_state
        current_edits = [edit for edit in applied if edit.state == state]
        rows_of = [edit.rows[: edit.encoded_request.required_rows] for edit in current_edits]
        suspect_ids = {edit.id for edit in applied if edit.state != state}
        if current_edits:
            is_firing = self._fires(Rows.join(rows_of), sum(part.rows for part in parts))
            rows = is_firing.split([len(edit_rows) for edit_rows in rows_of])
            suspect_ids |= {
                e.id
                for e, edit_rows in zip(current_edits, rows, strict=True)
                if bool(edit_rows.any())
            }
        return [edit for edit in applied if edit.id in suspect_ids]

    def _fires(self, rows: Rows, count: int) -> torch.Tensor:
        """Tell for each row, as [n] bool, whether one of the last `count` neurons of the last FFN
        fires on it."""
        bank = self._site.bank
        firing = bank.firing(rows.query, bank.size - count, rows.texts)
        return (firing.activations > 0).any(1)

    def _right(self, edits: EditGroup) -> dict[str, bool]:
        """Tell for each edit, by its id, whether the model answers its prompt rightly now, in each
        of its forms."""
        state = self._site.edited.rows_state
        moved_edits = [edit for edit in edits if edit.state != state]
        forms_by_id = [
            (edit.id, form) for edit in moved_edits for form in edit.encoded_request.required
        ]
        outcomes = {edit.id: True for edit in moved_edits}
        judgements = self._answers.judge_in_full([form for _, form in forms_by_id])
        for (identity, _), is_right in zip(forms_by_id, judgements, strict=True):
            outcomes[identity] &= is_right
        for edit in edits:
            if edit.state == state:
                learned, forms = edit.encoded_request.learned, edit.encoded_request.forms
                outcomes[edit.id] = self._answers.are_all_right(learned, forms, edit.rows)
        return outcomes


def _rows_naming(rows: Rows, subject: str) -> torch.Tensor:
    """Return the queries [r, d] of the rows whose text names a subject."""
    flags = named_in(rows.texts, range(len(rows)), subject)
    return rows.query[torch.tensor(flags, dtype=torch.bool, device=rows.query.device)]


_FULL = "others of the same step were over the budget one by one: there is no room for more"
_WRONG = "its own prompt is still not answered rightly with the patch on"
_TAKES = "its patch takes the right answer from another request of the same step"
_TAKEN = "a later patch of the same step took its right answer"


def _derived_seed(*parts: object) -> int:
    """Return a separate seed for every use, the same if the run is repeated or resumed."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
