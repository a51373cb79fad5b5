"""Trains some of a model's own parameters by Adam, as differences from their present values.

The float32 difference δ of each parameter is trained, and the model runs with W + δ in one float32
addition: exactly the sum that the finished patch puts on. Leaves the losses to `losses`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.editors.finetune.config import FineTuneConfig
from continual.editors.finetune.losses import fit_status
from continual.errors import EditError
from continual.task_model import TaskModel
from continual.tasks import Encoding


class Diverged(EditError):
    """A training that ran into NaN or infinity."""


@dataclass(frozen=True)
class TrainedDeltas:
    """The result of a training."""

    deltas: dict[str, Tensor]  # by path, float32; none is zero throughout
    right: tuple[bool, ...]  # of each text
    steps: int
    loss: float  # l_e at the end


@dataclass(frozen=True)
class Objective:
    """The texts to learn, the parameters to train, and the limits on them."""

    texts: tuple[Encoding, ...]
    paths: tuple[str, ...]
    restraint: Callable[[], Tensor | None] | None = None  # added to the loss of each step
    bound: float | None = None  # |δ| at most


def train(task_model: TaskModel, objective: Objective, config: FineTuneConfig) -> TrainedDeltas:
    """Train until every text is right, for at most `steps_max` steps. The model is as before when
    this returns or raises. Raises Diverged."""
    with task_model.edited.trained(objective.paths) as parameters, torch.enable_grad():
        weights = [task_model.edited.parameter(path) for path in parameters]
        starts = [weight.turned(weight.sum) for weight in weights]
        deltas = [torch.zeros_like(start) for start in starts]
        adam = torch.optim.Adam(deltas, lr=config.learning_rate)
        steps, status = 0, fit_status(task_model, objective.texts)
        _require_finite(status.loss, steps, config)
        while not all(status.right) and steps < config.steps_max:
            penalty = objective.restraint() if objective.restraint is not None else None
            loss = status.loss if penalty is None else status.loss + penalty
            _require_finite(loss, steps, config)
            loss.backward()
            _step(adam, deltas, list(parameters.values()), objective.bound)
            _move(parameters.values(), starts, deltas)
            steps, status = steps + 1, fit_status(task_model, objective.texts)
            _require_finite(status.loss, steps, config)
        for delta in deltas:
            _require_finite(delta, steps, config)
        pairs = zip(parameters, deltas, strict=True)
        changes = {path: delta for path, delta in pairs if bool(delta.any())}
        return TrainedDeltas(changes, status.right, steps, float(status.loss.detach()))


def _step(
    adam: torch.optim.Adam,
    deltas: Sequence[Tensor],
    parameters: Sequence[torch.nn.Parameter],
    bound: float | None,
) -> None:
    """Take one step of Adam on δ, by the parameters' gradients, and clear these."""
    for delta, parameter in zip(deltas, parameters, strict=True):
        delta.grad = None if parameter.grad is None else parameter.grad.float()
        parameter.grad = None
    adam.step()
    if bound is not None:
        for delta in deltas:
            delta.clamp_(-bound, bound)


@torch.no_grad()
def _move(
    parameters: Iterable[torch.nn.Parameter], starts: Sequence[Tensor], deltas: Sequence[Tensor]
) -> None:
    for parameter, start, delta in zip(parameters, starts, deltas, strict=True):
        parameter.copy_(start + delta)


def _require_finite(values: Tensor, steps: int, config: FineTuneConfig) -> None:
    if not bool(values.isfinite().all()):
        raise Diverged(
            f"its training ran into NaN or infinity after {steps} steps of learning rate "
            f"{config.learning_rate:g}: set a lower learning_rate under [{config.table}]"
        )
