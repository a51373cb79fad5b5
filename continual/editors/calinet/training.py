"""Trains the slots of one batch on rows of the last FFN.

    FFN'(q) = FFN(q) + relu(q·K)·V
    l = mean over the own rows of -log p(target) + silent_weight · E‖relu(m·K)·V‖² / E‖h‖²

over queries m in memory (Dong et al. 2022, eq. 4; the second term is not in the paper). Neither q
nor the residual sum h depends on a slot, so a step is two small products, a norm and the head. Runs
on tensors; leaves requests and files to the editor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from continual.editors.calinet.config import CalinetConfig

Logits = Callable[[Tensor], Tensor]
"""Residual sums [n, d] → logits [n, vocab] in float32; differentiable."""


@dataclass(frozen=True)
class OwnRows:
    """The rows that slots are trained to answer."""

    query: Tensor  # [n, d]
    hidden: Tensor  # [n, d] the residual sum, with the neurons that are on
    targets: Tensor  # [n]

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class SilentRows:
    """The queries on which slots change little."""

    training: Tensor  # [m, d] of training probes and general text
    edits: Tensor  # [p, d] of past edits and neighbours

    def drawn(self, count: int, generator: Generator) -> Tensor:
        """Draw [r, d] at most `count` queries of each part."""
        return torch.cat([_drawn(part, count, generator) for part in (self.training, self.edits)])


@dataclass(frozen=True)
class SlotParameters:
    """s slots, before they become a patch."""

    keys: Tensor  # [s, d]
    values: Tensor  # [s, d]

    def shifts(self, queries: Tensor) -> Tensor:
        """Return relu(q·K)·V [r, d] for queries [r, d]."""
        return torch.relu(queries @ self.keys.T) @ self.values


@dataclass(frozen=True)
class TrainedSlots:
    """The result of a training."""

    slots: SlotParameters
    losses: Tensor  # [n] of each own row at the end
    steps: int


class SlotTraining:
    """The training of one batch's slots, step by step. Keys begin random, values at zero."""

    def __init__(
        self,
        own: OwnRows,
        silent: SilentRows,
        logits: Logits,
        config: CalinetConfig,
        generator: Generator,
        *,
        rows_max: int = 2**20,
    ) -> None:
        """`rows_max` rows go through `logits` at once."""
        self._own, self._silent, self._logits = own, silent, logits
        self._config, self._generator, self._rows_max = config, generator, rows_max
        width = own.query.shape[1]
        self._key_unit = 1.0 / own.query.norm(dim=1).mean()
        self._value_unit = own.hidden.norm(dim=1).mean() / width**0.5
        start = torch.randn(config.slots, width, generator=generator).to(own.query)
        self._keys = start.requires_grad_()
        self._values = torch.zeros_like(start).requires_grad_()
        self._adam = torch.optim.Adam([self._keys, self._values], lr=config.learning_rate)

    def slots(self) -> SlotParameters:
        """Return the slots as they are now, in the model's units; differentiable."""
        return SlotParameters(self._key_unit * self._keys, self._value_unit * self._values)

    def run(self) -> TrainedSlots:
        """Train until every own row's loss is at most `confidence`, for at most `steps_max`
        steps."""
        steps = 0
        with torch.enable_grad():
            losses = self._step()
            while float(losses.max()) > self._config.confidence and steps < self._config.steps_max:
                self._adam.step()
                steps, losses = steps + 1, self._step()
        slots = self.slots()
        return TrainedSlots(
            SlotParameters(slots.keys.detach(), slots.values.detach()), losses, steps
        )

    def _step(self) -> Tensor:
        """Set the gradients at the present slots, and return the losses [n] of the own rows."""
        self._adam.zero_grad()
        losses = []
        for start in range(0, len(self._own), self._rows_max):
            part = slice(start, start + self._rows_max)
            hidden = self._own.hidden[part] + self.slots().shifts(self._own.query[part])
            nll = torch.nn.functional.cross_entropy(
                self._logits(hidden), self._own.targets[part], reduction="none"
            )
            (nll.sum() / len(self._own)).backward()
            losses.append(nll.detach())
        self._keep_silent()
        return torch.cat(losses)

    def _keep_silent(self) -> None:
        """Add the gradient of the term on the memory."""
        if not self._config.silent_weight:
            return
        queries = self._silent.drawn(self._config.silent_rows, self._generator)
        if not len(queries):
            return
        shifts = self.slots().shifts(queries).square().sum(1).mean()
        scale = self._own.hidden.square().sum(1).mean()
        (self._config.silent_weight * shifts / scale).backward()


def _drawn(queries: Tensor, count: int, generator: Generator) -> Tensor:
    if len(queries) <= count:
        return queries
    return queries[torch.randperm(len(queries), generator=generator)[:count].to(queries.device)]
