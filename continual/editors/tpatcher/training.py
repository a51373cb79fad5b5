"""Training neurons on cached rows: no model forward, all the neurons of a batch side by side.

A *slot* is one neuron with its own rows: the same answer position of the prompt and of the
rephrases that may be learned from, padded to the widest slot. Neurons of a batch do not interact
here: each is held silent on the others' rows, as on the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from continual.editors.tpatcher.config import TPatcherConfig
from continual.editors.tpatcher.losses import (
    Bounds,
    activation_loss,
    edit_loss,
    memory_losses,
)
from continual.editors.tpatcher.separating import Supports, widest_key
from continual.editors.tpatcher.whitening import QueryWhitening

ROOM_MIN = 2.0**-10
FEW = 8  # neurons: a step of so many costs as much as one of half of them
STEP_LENGTHS = 2.0 ** torch.arange(-3.0, 3.0, 0.5)  # in lengths of the row that is patched

Logits = Callable[[Tensor], Tensor]  # residual sums [.., d] → logits [.., vocab]
Highest = Callable[[Tensor], Tensor]  # keys [n, d] → their highest scores in memory [n]


class Descends(Protocol):
    """A function to logits that also gives the gradient of l_e."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits [.., vocab] of residual sums [.., d]."""

    def gradient(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return [.., d] the gradient of each row's l_e by its residual sum."""


@dataclass(frozen=True)
class Slots:
    """The own rows of n neurons, r each at most; row 0 is the prompt's."""

    query: Tensor  # [n, r, d]
    hidden: Tensor  # [n, r, d]: residual sum with the neurons that are on already
    targets: Tensor  # [n, r]
    real: Tensor  # [n, r] bool: not padding

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Tensor) -> Slots:
        return Slots(self.query[index], self.hidden[index], self.targets[index], self.real[index])

    def joined(self, more: Slots) -> Slots:
        """Return the same neurons with more own rows."""
        return Slots(
            torch.cat([self.query, more.query], 1),
            torch.cat([self.hidden, more.hidden], 1),
            torch.cat([self.targets, more.targets], 1),
            torch.cat([self.real, more.real], 1),
        )


@dataclass(frozen=True)
class NeuronParameters:
    """n neurons, before they become a patch."""

    keys: Tensor  # [n, d]
    bias: Tensor  # [n]
    values: Tensor  # [n, d]

    def activations(self, query: Tensor) -> Tensor:
        """Return relu(q·k + b) of each neuron on its own rows [n, r, d] → [n, r]."""
        return torch.relu(scores(query, self.keys) + self.bias[:, None])

    def __getitem__(self, index: Tensor) -> NeuronParameters:
        return NeuronParameters(self.keys[index], self.bias[index], self.values[index])

    def but(self, others: NeuronParameters, where: Tensor) -> NeuronParameters:
        """Return these neurons, with the others at the places `where` [n]."""
        each = where[:, None]
        return NeuronParameters(
            torch.where(each, others.keys, self.keys),
            torch.where(where, others.bias, self.bias),
            torch.where(each, others.values, self.values),
        )


def scores(query: Tensor, keys: Tensor) -> Tensor:
    """Return q·k of each neuron with its own rows: [n, r, d], [n, d] → [n, r]."""
    return (query @ keys.unsqueeze(-1)).squeeze(-1)


def total_loss(
    slots: Slots, neurons: NeuronParameters, memory: Tensor, logits: Logits, config: TPatcherConfig
) -> Tensor:
    """Return l_e + alpha·l_a + m·(l_m1 + l_m2) of each neuron, [n]; memory [m, d]."""
    own_scores = scores(slots.query, neurons.keys)
    bounds = Bounds(config.beta, config.gamma, config.memory_top)
    fire = (own_scores + neurons.bias[:, None]).masked_fill(~slots.real, torch.inf)
    silent, below = memory_losses(neurons.keys @ memory.T, own_scores[:, 0], neurons.bias, bounds)
    return (
        _mean_edit_loss(slots, neurons, logits)
        + config.alpha * activation_loss(fire, config.activation_top)
        + config.memory_weight * (silent + below)
    )


def _mean_edit_loss(slots: Slots, neurons: NeuronParameters, logits: Logits) -> Tensor:
    activations = neurons.activations(slots.query)
    patched = slots.hidden + activations.unsqueeze(-1) * neurons.values.unsqueeze(1)
    losses = edit_loss(logits(patched), slots.targets) * slots.real
    return losses.sum(1) / slots.real.sum(1)


# --- the closed form ------------------------------------------------------------------------------


def closed_form(
    slots: Slots,
    centre: Tensor,
    highest: Highest,
    config: TPatcherConfig,
) -> tuple[NeuronParameters, Tensor]:
    """Make neurons with v = 0; return them, and a mask [n] of those that separate their rows from
    memory.

    k points from `centre` [d] to the mean of the own queries, k ∝ (q̄ - c)/‖q̄ - c‖². With c = 0 that
    is the paper's start; with the memory's mean as c it leaves out the common part of all queries.
    `highest` gives the highest score in memory for keys [n, d] → [n].
    """
    count = slots.real.sum(1, keepdim=True)
    mean = (slots.query * slots.real.unsqueeze(-1)).sum(1) / count - centre
    keys = mean / mean.square().sum(1, keepdim=True)
    own_scores = scores(slots.query, keys)
    return sealed(
        slots, keys, own_scores, highest(keys), config.separation * own_scores[:, 0].abs(), config
    )


def widened(
    slots: Slots,
    start: Tensor,
    wanted: Tensor,
    supports: Sequence[Supports],
    highest: Highest,
    config: TPatcherConfig,
    whitening: QueryWhitening | None = None,
) -> tuple[NeuronParameters, Tensor]:
    """Make neurons with the keys of the largest margin to memory for the slots `wanted` [n]; return
    them, and a mask [n] of those that separate.

    The search begins with the keys `start` [n, d]; other slots keep these. A margin has to be at
    least ``ROOM_MIN`` of the own queries' length; with a whitening the search measures it in
    whitened coordinates. `supports` gives, for each slot, the row [d] of its memory that a key [d]
    scores highest.
    """
    keys = start.clone()
    for slot in wanted.nonzero().flatten().tolist():
        own_queries = slots.query[slot][slots.real[slot]]
        keys[slot] = widest_key(own_queries, start[slot], supports[slot], whitening)
    lengths: Tensor = torch.linalg.vector_norm(slots.query, dim=-1).amax(1)
    least = ROOM_MIN * lengths * torch.linalg.vector_norm(keys, dim=-1)
    return sealed(slots, keys, scores(slots.query, keys), highest(keys), least, config)


def sealed(
    slots: Slots,
    keys: Tensor,
    own: Tensor,
    highest: Tensor,
    least: Tensor,
    config: TPatcherConfig,
) -> tuple[NeuronParameters, Tensor]:
    """Set bias and scale for given keys: silent on memory, 1 on the edit's query; see `config`.

    Returns the neurons, and a mask [n] of those that separate: they score each own row, `own`
    [n, r], higher than `highest` [n] by more than `least` [n].
    """
    lowest = own.masked_fill(~slots.real, torch.inf).amin(1)
    highest = highest.masked_fill(highest.isinf(), 0.0)
    separate = lowest - highest > least
    threshold = highest + config.margin * (lowest - highest)
    scale = 1.0 / torch.where(separate, own[:, 0] - threshold, torch.ones_like(threshold))
    neurons = NeuronParameters(keys * scale[:, None], -threshold * scale, torch.zeros_like(keys))
    return neurons, separate


def at_the_weakest(neurons: NeuronParameters, slots: Slots) -> tuple[NeuronParameters, Tensor]:
    """Scale the neurons to 1 on their weakest own row, where they fire least; return them with
    these rows' queries [n, d]. Silent neurons stay as they are."""
    activations = neurons.activations(slots.query).masked_fill(~slots.real, torch.inf)
    least, place = activations.min(1)
    scale = 1.0 / torch.where(least > 0, least, torch.ones_like(least))
    weakest = slots.query[torch.arange(len(place), device=place.device), place]
    return NeuronParameters(
        neurons.keys * scale[:, None], neurons.bias * scale, neurons.values
    ), weakest


# --- values alone ---------------------------------------------------------------------------------


def train_values(
    slots: Slots, neurons: NeuronParameters, logits: Descends, config: TPatcherConfig
) -> tuple[NeuronParameters, Tensor]:
    """Train v by steepest descent, with keys and bias fixed, until l_e of every row is small;
    return the neurons, and a mask [n] of those that have arrived there.

    A step tries all its lengths down the gradient of the neuron's l_e at once, and takes the
    shortest sufficient one, else the best. A length is sufficient if each row has a loss below
    `confidence`, or is right and the next length gains less than `progress` (for a model that is
    never that confident). Then the neuron stops, while the others go on. Values are trained at
    `reach` of the neurons' activation, so that they also suffice for phrasings that fire them less.
    """
    descent = _Descent(slots, neurons, logits, config)
    descent.run(config.value_steps_max)
    return descent.neurons(), descent.arrived


class _Descent:
    """The descent on the values of n neurons."""

    def __init__(
        self, slots: Slots, neurons: NeuronParameters, logits: Descends, config: TPatcherConfig
    ) -> None:
        self._slots, self._start, self._logits, self._config = slots, neurons, logits, config
        self._padding = ~slots.real
        self._activations = config.reach * neurons.activations(slots.query).unsqueeze(-1)
        self._activations *= slots.real.unsqueeze(-1)
        self._values = neurons.values
        self._lengths = _lengths(slots)
        self._worst = torch.full_like(neurons.bias, torch.inf)  # l_e of the worst row
        self.moving = torch.ones_like(neurons.bias, dtype=torch.bool)
        self.arrived = torch.zeros_like(self.moving)

    def neurons(self) -> NeuronParameters:
        """Return the neurons as they are now."""
        return NeuronParameters(self._start.keys, self._start.bias, self._values)

    def run(self, steps: int) -> None:
        """Take at most `steps` steps, until all neurons stop; once most have, run the others
        alone."""
        for steps_left in range(steps, 0, -1):
            self.step()
            moving = self.moving.nonzero().flatten()
            if not len(moving):
                return
            if FEW < 2 * len(moving) <= len(self.moving):
                few = self._among(moving)
                few.run(steps_left - 1)
                self._values[moving], self.arrived[moving] = few._values, few.arrived
                return

    def _among(self, places: Tensor) -> _Descent:
        """Return the descent of these neurons alone, from their present values."""
        few = _Descent(self._slots[places], self.neurons()[places], self._logits, self._config)
        few._worst = self._worst[places]
        return few

    def step(self) -> None:
        """Take one step of every neuron that still moves."""
        tried = self._values - self._lengths[:, :, None] * self._direction()  # [s, n, d]
        with torch.no_grad():
            logits = self._logits(self._patched(tried))
            losses = self._losses(logits)  # [s, n, r]
        worst = losses.amax(-1)
        done = self._done(logits, worst)
        best = torch.where(done.any(0), done.long().argmax(0), losses.sum(-1).argmin(0))
        places = (best, torch.arange(len(best), device=best.device))
        reached = worst[places]
        better = self.moving & (reached < self._worst)
        best_values = tried[places]
        self._values = torch.where(better[:, None], best_values, self._values)
        self._worst = torch.where(better, reached, self._worst)
        self.arrived = self.arrived | (better & done[places])
        self.moving = better & ~self.arrived

    def _done(self, found: Tensor, worst: Tensor) -> Tensor:
        """Return a mask [s, n] of the sufficient lengths, by their logits [s, n, r, vocab] and
        worst losses."""
        target_logits = found.gather(-1, self._targets(found).unsqueeze(-1)).squeeze(-1)
        right = ((target_logits >= found.amax(-1)) | self._padding).all(-1)
        longer = torch.cat([worst[1:], torch.full_like(worst[:1], torch.inf)])
        settled = right & (longer > (1.0 - self._config.progress) * worst)
        return (worst <= self._config.confidence) | settled

    def _direction(self) -> Tensor:
        """Return [n, d] the gradient's direction."""
        rows = self._logits.gradient(self._patched(self._values), self._slots.targets)
        each = (self._activations * rows).sum(1)
        return torch.nn.functional.normalize(each, dim=-1)

    def _patched(self, values: Tensor) -> Tensor:
        """Return the own rows with values [.., n, d] added."""
        return self._slots.hidden + self._activations * values.unsqueeze(-2)

    def _losses(self, found: Tensor) -> Tensor:
        """Return l_e of each row [.., n, r], zero for padding."""
        return edit_loss(found, self._targets(found)) * self._slots.real

    def _targets(self, found: Tensor) -> Tensor:
        """Return the target of each row of logits [.., n, r, vocab]."""
        return self._slots.targets.expand(found.shape[:-1])


def _lengths(slots: Slots) -> Tensor:
    """Return [s, n] the lengths of a step to try, shortest first, scaled by the rows' mean norm."""
    lengths: Tensor = torch.linalg.vector_norm(slots.hidden, dim=-1).mean(1)
    return STEP_LENGTHS.to(lengths)[:, None] * lengths


# --- keys, bias and values together ---------------------------------------------------------------


def train_all(
    slots: Slots, start: NeuronParameters, memory: Tensor, logits: Logits, config: TPatcherConfig
) -> NeuronParameters:
    """Run the paper's training: Adam on (k, b, v) with all the losses, until the keys separate.

    Takes at most `steps_max` steps; the result still has to be sealed.
    """
    training = PaperTraining(slots, start, memory, logits, config)
    for step in range(config.steps_max):
        training.step()
        if (step + 1) % config.check_every == 0 and training.separates():
            break
    return training.neurons()


class PaperTraining:
    """One optimisation of (k, b, v), step by step."""

    def __init__(
        self,
        slots: Slots,
        start: NeuronParameters,
        memory: Tensor,
        logits: Logits,
        config: TPatcherConfig,
    ) -> None:
        self._slots, self._memory, self._logits, self._config = slots, memory, logits, config
        self._parameters = [
            tensor.detach().clone().requires_grad_()
            for tensor in (start.keys, start.bias, start.values)
        ]
        self._optimizer = torch.optim.Adam(
            self._parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def neurons(self) -> NeuronParameters:
        """Return the neurons as they are now."""
        keys, bias, values = (parameter.detach().clone() for parameter in self._parameters)
        return NeuronParameters(keys, bias, values)

    def step(self) -> Tensor:
        """Take one step on the sum of the neurons' losses; return the losses [n] before the
        step."""
        losses = total_loss(
            self._slots,
            NeuronParameters(*self._parameters),
            self._memory,
            self._logits,
            self._config,
        )
        self._optimizer.zero_grad()
        losses.sum().backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, self._config.gradient_clip)
        self._optimizer.step()
        return losses.detach()

    def separates(self) -> bool:
        """Tell whether every key scores its own rows above all of the memory."""
        keys = self._parameters[0].detach()
        least_scores = (
            scores(self._slots.query, keys).masked_fill(~self._slots.real, torch.inf).amin(1)
        )
        margins = self._config.separation * least_scores.abs()
        if len(self._memory) == 0:
            return True
        return bool((least_scores - (keys @ self._memory.T).amax(1) > margins).all())
