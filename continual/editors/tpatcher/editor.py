"""The T-Patcher editor: wrong answer positions become slots, slots become neurons.

Turns a batch into neurons; leaves the differences between places to their `grounds`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from continual.editors.protected_tokens import ProtectedTokens
from continual.editors.tpatcher.competing import whole
from continual.editors.tpatcher.config import TPatcherConfig
from continual.editors.tpatcher.copies import Originals, copied, worded
from continual.editors.tpatcher.elsewhere import Elsewhere
from continual.editors.tpatcher.grounds import Ground, LastFfn
from continual.editors.tpatcher.plans import NeuronPlan, planned
from continual.editors.tpatcher.training import (
    Highest,
    NeuronParameters,
    Slots,
    at_the_weakest,
    closed_form,
    scores,
    sealed,
    total_loss,
    train_all,
    widened,
)
from continual.editors.tpatcher.whitening import QueryWhitening
from continual.errors import EditError
from continual.locate_then_edit.prefixes import Prefixes
from continual.patches import Patch
from continual.patches.neuron import NeuronPatch
from continual.proposals import Edit, EditContext, Proposal
from continual.queries.memory import ProtectedQueries
from continual.site.rows import Rows

__all__ = ["TPatcher", "total_loss"]

RETRIED_NEURONS_MAX = 512
"""Neurons of one request on a retry: more than any answer of the usual length has tokens."""


class TPatcher:
    """One neuron per wrong answer position, in the last FFN or where `config` says; everything else
    stays as it is."""

    name = "tpatcher"
    attempts = 3
    tolerance = 0.0
    splits = False
    crowds = True
    narrows = True

    def __init__(self, config: TPatcherConfig | None = None) -> None:
        self.config = config or TPatcherConfig()
        self._prefixes = Prefixes()
        self._protected: ProtectedTokens | None = None  # where neurons stand elsewhere
        self._worded: tuple[tuple[str, ...], Slots] | None = None  # the latest

    def edit(self, edits: Sequence[Edit], context: EditContext) -> Proposal:
        """See `Editor.edit`. A retry learns from the prompt alone; the last one uses the paper's
        own training if the closed form does not separate. Edits whose neurons ask for their subject
        are made one by one, each against the memory that names it; where rows do not give the
        logits, neurons ask for none."""
        if not (self.config.asks_subject and context.naming and context.site.has_rows):
            return self._propose(edits, context)
        asking = [edit for edit in edits if edit.request.named_subject]
        unnamed = [edit for edit in edits if not edit.request.named_subject]
        proposals = [self._propose(unnamed, context)] if unnamed else []
        for edit in asking:
            assert context.naming is not None
            own_context = replace(context, memory=context.naming(edit))
            proposals.append(self._propose([edit], own_context, edit.request.named_subject))
        return _joined(proposals)

    def _propose(self, edits: Sequence[Edit], context: EditContext, subject: str = "") -> Proposal:
        """Make neurons for these edits; with a `subject` the neurons ask for it."""
        if context.attempt:
            edits = [edit.alone() for edit in edits]
        ground = self._ground(edits, context, subject)
        config = self._budget(context, ground)
        edits = ground.edits
        rows = Rows.join(part for edit in edits for part in edit.rows)
        plan, failed = planned(edits, rows, ground.survey(rows, config.candidates), config)
        if plan.own:
            copies = self._copies(plan, ground, context, config)
            with ground.minded():
                apart = self._separate(plan, copies, ground, context, config)
            plan, neurons, lost = _whole(*apart)
            failed |= {edits[number].id: _NOT_SEPARATE for number in lost}
        if plan.own:
            plan, neurons, lost = _whole(plan, *ground.train(plan, neurons, config))
            reason = _NOT_ARRIVED.format(config.value_steps_max)
            failed |= {edits[number].id: reason for number in lost}
        if not plan.own:
            return Proposal(None, failed)
        owners = tuple(edits[number].id for number in plan.owner)
        patch = ground.patch(neurons, owners)
        notes = {identity: {"neurons": count} for identity, count in Counter(owners).items()}
        return Proposal(patch, failed, notes)

    def objection(self, patch: Patch, edits: Sequence[Edit], context: EditContext) -> str | None:
        """Object to a patch over its norm budget: `norm_max` times the mean norm of the edits'
        residual sums, with the neurons that are on; each retry doubles it."""
        hidden = self._ground(edits, context).hidden()
        asks = isinstance(patch, NeuronPatch) and any(patch.subjects)
        norm_max = self.config.asking().norm_max if asks else self.config.norm_max
        budget = norm_max * 2.0**context.attempt * float(hidden.norm(dim=1).mean())
        if patch.norm() <= budget:
            return None
        return f"its patch has norm {patch.norm():.3g}, over the budget of {budget:.3g}"

    def _ground(self, edits: Sequence[Edit], context: EditContext, subject: str = "") -> Ground:
        """Return the ground for the neurons of these edits: the last FFN, unless `config` says
        otherwise. Raises EditError for a place that the model does not have, and for `asks_subject`
        elsewhere."""
        place = self.config.place(context.site.place)
        is_last = place == context.site.place
        if is_last and context.site.has_rows:
            return LastFfn(edits, context, subject)
        if self.config.asks_subject and not is_last:
            raise EditError(
                f"[{self.config.table}] asks_subject = true holds at the last place alone, and the "
                f"neurons are to be from {place}: set asks_subject = false, or leave out block, "
                "key, value_block and value."
            )
        if self._protected is None or self._protected.place != place:
            self._protected = ProtectedTokens(context.site, place)
        return Elsewhere(edits, context, self._protected)

    def _budget(self, context: EditContext, ground: Ground) -> TPatcherConfig:
        """Return the settings of this attempt. Each retry may take more neurons and steps, and
        gives up more generality; a retry of an edit that changed too much is narrower instead."""
        crowd = context.site.edited.gates(ground.place).size
        config = self.config.among(crowd)
        if ground.subject:
            has_wordings = any(edit.wordings for edit in ground.edits)
            config = self.config.asking(has_wordings=has_wordings)
        attempt, config = context.attempt, config.narrower(context.narrow)
        if attempt == 0 and not context.narrow:
            return config
        config = replace(config, neurons_max=max(config.neurons_max, RETRIED_NEURONS_MAX))
        if context.narrow:
            return config
        return replace(
            config,
            copies=0,
            reach=1.0,
            centred=False,
            margin=config.margin / 2**attempt,
            value_steps_max=self.config.value_steps_max * 4**attempt,
            steps_max=self.config.steps_max * attempt,
            separation=self.config.separation / 10**attempt,
        )

    def _copies(
        self, plan: NeuronPlan, ground: Ground, context: EditContext, config: TPatcherConfig
    ) -> Slots | None:
        """Return further own rows of the slots, for their keys alone; None if the settings ask for
        none."""
        if not config.copies:
            return None
        edits = ground.edits
        answers = ground.answers(plan)
        originals = Originals(edits, plan.owner, plan.places(edits), answers)
        if not config.whitening:
            return copied(originals, self._prefixes, config.copies, context, ground)
        key = (context.site.edited.fingerprint, *(edit.id for edit in edits))
        if self._worded is None or self._worded[0] != key:  # a narrower retry asks for the same
            made = worded(originals, self._prefixes, config.copies, context, ground)
            self._worded = key, made
        return self._worded[1]

    def _separate(
        self,
        plan: NeuronPlan,
        copies: Slots | None,
        ground: Ground,
        context: EditContext,
        config: TPatcherConfig,
    ) -> tuple[NeuronPlan, NeuronParameters, Tensor]:
        """Return the plan, keys and biases, and a mask [n] of the neurons that separate their own
        rows from all others."""
        silent = _Silent(plan, ground.memory)
        if copies is None:
            neurons, separate = _separated(plan.slots, silent, config)
        else:
            neurons, separate, reached = _separated_with(copies, plan.slots, silent, config)
            plan = replace(plan, reached=reached)
        is_last = context.attempt == self.attempts - 1 and ground.retrains
        if is_last and not bool(separate.all()):
            return plan, *_retrain(plan.slots, context, config, silent.highest)
        return plan, neurons, separate


_NOT_SEPARATE = "its query cannot be told from one that has to keep its answer"
_NOT_ARRIVED = "its values did not arrive in {} steps"


def _whole(
    plan: NeuronPlan, neurons: NeuronParameters, done: Tensor
) -> tuple[NeuronPlan, NeuronParameters, set[int]]:
    """Keep the edits whose neurons [n] are all done, and return the numbers of the others: an edit
    has all of its neurons, or none."""
    lost = {plan.owner[slot] for slot in (~done).nonzero().flatten().tolist()}
    if not lost:
        return plan, neurons, lost
    whole_slots = [slot for slot, number in enumerate(plan.owner) if number not in lost]
    return (
        plan.chosen(whole_slots),
        neurons[torch.tensor(whole_slots, dtype=torch.long, device=done.device)],
        lost,
    )


@dataclass(frozen=True)
class _Silent:
    """The rows on which a batch's neurons must be silent: the memory, and each other's rows."""

    plan: NeuronPlan
    memory: ProtectedQueries

    def highest(self, keys: Tensor) -> Tensor:
        """Return the highest score of each slot's key [slots, d] → [slots]."""
        batch = keys @ self.plan.rows.query.T
        batch_scores = batch.masked_fill(~self.plan.foreign(), -torch.inf).amax(1)
        return torch.maximum(self.memory.highest_scores(keys), batch_scores)

    def highest_row(self, slot: int, key: Tensor) -> Tensor:
        """Return [d] the row that a slot's key [d] scores highest; zero if there is none."""
        foreign_queries = self.plan.rows.query[self.plan.foreign()[slot]]
        rows = torch.cat([self.memory.supporting(key), foreign_queries])
        return rows[(rows @ key).argmax()] if len(rows) else torch.zeros_like(key)


def _separated(
    slots: Slots, silent: _Silent, config: TPatcherConfig
) -> tuple[NeuronParameters, Tensor]:
    """Make neurons in the closed form. If it does not separate a neuron with one own row, that
    neuron gets the widest margin; a plane around several rows would take in too much else."""
    neurons, separate = _closed(slots, silent, config)
    is_widened = ~separate & (slots.real.sum(1) == 1)
    return _widened(slots, silent, config, (neurons, separate), is_widened)


def _separated_with(
    copies: Slots, slots: Slots, silent: _Silent, config: TPatcherConfig
) -> tuple[NeuronParameters, Tensor, Tensor]:
    """Make neurons with copies among the own rows, if a plane separates them from the memory; its
    margin keeps other text out. With whitening all keys have the widest margin. Returns also the
    separate ones [slots], and the queries [slots, r, d] at which values must be enough.
    """
    among, all_rows = config.among_copies(), slots.joined(copies)
    has_copies = copies.real.any(1)
    neurons, separate = _closed(all_rows, silent, among)
    separate &= has_copies & (not config.whitening)
    start = neurons, separate
    neurons, separate = _widened(all_rows, silent, among, start, has_copies & ~separate)
    neurons, weakest = at_the_weakest(neurons, all_rows)
    reached = torch.where(separate[:, None, None], weakest[:, None], slots.query)
    if bool(separate.all()):
        return neurons, separate, reached
    alone, are_separate = _separated(slots, silent, config)
    return alone.but(neurons, separate), separate | are_separate, reached


def _closed(
    slots: Slots, silent: _Silent, config: TPatcherConfig
) -> tuple[NeuronParameters, Tensor]:
    centre = silent.memory.mean() if config.centred else torch.zeros_like(slots.query[0, 0])
    return closed_form(slots, centre, silent.highest, config)


def _widened(
    slots: Slots,
    silent: _Silent,
    config: TPatcherConfig,
    start: tuple[NeuronParameters, Tensor],
    wanted: Tensor,
) -> tuple[NeuronParameters, Tensor]:
    """Give the slots `wanted` [n] the widest margin; return the neurons and a mask [n] of the
    separate ones."""
    neurons, separate = start
    if not bool(wanted.any()):
        return start
    supports = [partial(silent.highest_row, slot) for slot in range(len(slots))]
    whitening = None
    if config.whitening:
        whitening = QueryWhitening.of(silent.memory.training, config.whitening)
    wide, is_wide = widened(
        slots, neurons.keys, wanted, supports, silent.highest, config, whitening
    )
    return neurons.but(wide, wanted), separate | (wanted & is_wide)


def _retrain(
    slots: Slots, context: EditContext, config: TPatcherConfig, highest: Highest
) -> tuple[NeuronParameters, Tensor]:
    """Run the paper's training for all slots of a batch, some of which do not separate."""
    keys = slots.query[:, 0] / slots.query[:, 0].square().sum(1, keepdim=True)
    start = NeuronParameters(keys, torch.zeros_like(keys[:, 0]), torch.zeros_like(keys))
    memory = context.memory.all()
    trained = train_all(slots, start, memory, whole(context.site), config)
    own_scores = scores(slots.query, trained.keys)
    least = config.separation * own_scores[:, 0].abs()
    return sealed(slots, trained.keys, own_scores, highest(trained.keys), least, config)


def _joined(proposals: Sequence[Proposal]) -> Proposal:
    """Join proposals into one, with their neurons in order."""
    patches = [p.patch for p in proposals if isinstance(p.patch, NeuronPatch)]
    failed = {identity: reason for p in proposals for identity, reason in p.failed.items()}
    notes = {identity: note for p in proposals for identity, note in p.notes.items()}
    if not patches:
        return Proposal(None, failed, notes)
    (patch,) = NeuronPatch.joined(patches)
    owners = tuple(owner for part in patches for owner in part.owners)
    return Proposal(patch.owned_by(owners), failed, notes)
