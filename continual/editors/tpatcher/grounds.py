"""The places of neurons: the rows of edits there, their answers, and the training of values.

`Ground` is the contract between the editor and a place; `LastFfn` is the paper's place, where rows
determine an answer and no pass of the model is needed. `elsewhere` has all other places.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from continual.editors.tpatcher.competing import (
    VOCABULARY_MIN,
    CompetingTokens,
    competing,
    survey,
    whole,
)
from continual.editors.tpatcher.config import TPatcherConfig
from continual.editors.tpatcher.plans import NeuronPlan
from continual.editors.tpatcher.training import NeuronParameters, train_values
from continual.effects.places import GatePlace
from continual.patches.neuron import NeuronPatch, neurons_at
from continual.proposals import Edit, EditContext
from continual.queries.memory import ProtectedQueries
from continual.site import LOGITS_MAX, Site
from continual.site.rows import Rows
from continual.tasks import Encoding


class Ground(Protocol):
    """A place in the model at head, for the neurons of some edits."""

    subject: str
    """The subject that the neurons ask for; empty for none."""
    retrains: bool
    """True if the paper's training of keys, biases and values can be run here."""

    @property
    def place(self) -> GatePlace:
        """The place of the neurons."""

    @property
    def edits(self) -> Sequence[Edit]:
        """The edits, with their rows at this place: keys read `query`, values land on `hidden`."""

    @property
    def memory(self) -> ProtectedQueries:
        """The queries on which the neurons stay silent."""

    def minded(self) -> AbstractContextManager[None]:
        """Add the neighbours of the edits to the memory while the `with` lasts."""

    def hidden(self) -> Tensor:
        """Return the states [n, d] on which values land, of all rows, with the neurons that are
        on."""

    def survey(self, rows: Rows, count: int) -> CompetingTokens:
        """Return the answers of the edits' rows before the edit; see `competing.survey`."""

    def answers(self, plan: NeuronPlan) -> Tensor:
        """Return [slots] the token that the model gives at each slot's first row."""

    def seen(self, encodings: Sequence[Encoding]) -> tuple[Rows, Tensor]:
        """Return the rows of other texts, `hidden` with the neurons that are on, and the tokens [n]
        that the model gives there."""

    def train(
        self, plan: NeuronPlan, neurons: NeuronParameters, config: TPatcherConfig
    ) -> tuple[NeuronParameters, Tensor]:
        """Return the neurons with their values, and a mask [slots] of those whose own rows are
        right with them."""

    def patch(self, neurons: NeuronParameters, owners: tuple[str, ...]) -> NeuronPatch:
        """Return the patch that puts the neurons on here."""


class LastFfn:
    """The last place of a model: a row's answer is one norm and one projection away."""

    retrains = True

    def __init__(self, edits: Sequence[Edit], context: EditContext, subject: str = "") -> None:
        self.edits, self.memory, self.subject = edits, context.memory, subject
        self._site = context.site

    @property
    def place(self) -> GatePlace:
        """See `Ground.place`."""
        return self._site.place

    def minded(self) -> AbstractContextManager[None]:
        """See `Ground.minded`: the pipeline adds them before it asks an editor."""
        return nullcontext()

    def hidden(self) -> Tensor:
        """See `Ground.hidden`."""
        return self._site.patched(Rows.join(rows for edit in self.edits for rows in edit.rows))

    def survey(self, rows: Rows, count: int) -> CompetingTokens:
        """See `Ground.survey`."""
        return survey(self._site, rows, count if self._site.choices >= VOCABULARY_MIN else 0)

    def answers(self, plan: NeuronPlan) -> Tensor:
        """See `Ground.answers`."""
        return answers_of(self._site, plan.before.hidden[[slot_rows[0] for slot_rows in plan.own]])

    def seen(self, encodings: Sequence[Encoding]) -> tuple[Rows, Tensor]:
        """See `Ground.seen`."""
        rows = self._site.rows(encodings)
        rows = Rows(rows.query, self._site.patched(rows), rows.targets, rows.texts)
        return rows, answers_of(self._site, rows.hidden)

    def train(
        self, plan: NeuronPlan, neurons: NeuronParameters, config: TPatcherConfig
    ) -> tuple[NeuronParameters, Tensor]:
        """See `Ground.train`: all slots side by side, on few logits where these are enough. Neurons
        that ask for a subject have to do at a small share of their activation: a value that then
        overshoots at the whole of it is trained again, at twice that share."""
        start = neurons
        slots, rivals = plan.value_slots, plan.rivals()
        done = torch.zeros_like(neurons.bias, dtype=torch.bool)
        few = None if rivals is None else competing(self._site, slots, rivals)
        for racing, logits in ([few] if few else []) + [(slots, whole(self._site))]:
            neurons, done = train_values(racing, neurons, logits, config)
            is_all = racing is slots and len(set(plan.owner)) == 1  # then the proof is the try
            if is_all and bool(done.all()) and not self.subject:
                break
            done = self._tried(plan, neurons)
            if bool(done.all()):  # else another logit came up: all compete
                break
        while self.subject and config.reach < 1.0 and not bool(done.all()):
            config = replace(config, reach=min(1.0, 2.0 * config.reach))
            again, _ = train_values(slots, start, whole(self._site), config)
            neurons = neurons.but(again, ~done)
            done = self._tried(plan, neurons)
        return neurons, done

    @torch.no_grad()
    def _tried(self, plan: NeuronPlan, neurons: NeuronParameters) -> Tensor:
        """Return a mask [n]: with all neurons on, all own rows of the neuron are right."""
        on = self.patch(neurons, ())
        hidden = self._site.patched_with(plan.rows, on)  # the proof will ask for the same
        right = (self._site.logits(hidden).argmax(-1) == plan.rows.targets).tolist()
        arrived = [all(right[row] for row in rows) for rows in plan.own]
        return torch.tensor(arrived, device=hidden.device)

    def patch(self, neurons: NeuronParameters, owners: tuple[str, ...]) -> NeuronPatch:
        """See `Ground.patch`."""
        subjects = (self.subject,) * len(neurons.bias) if self.subject else ()
        patch = neurons_at(self.place, neurons.keys, neurons.bias, neurons.values, owners)
        return replace(patch, subjects=subjects)


def answers_of(site: Site, hidden: Tensor) -> Tensor:
    """Return [n] the token with the highest logit, for residual sums [n, d]."""
    size = max(1, LOGITS_MAX // site.choices)
    return torch.cat([site.logits(part).argmax(-1) for part in hidden.split(size)])
