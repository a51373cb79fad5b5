"""Trains an editor network on groups of edits, epoch by epoch, with its state on disk.

The loss is the method's own, of -log p of the new answers and KL(base ‖ edited) on other texts,
both under the network's updates. No gradient goes through the rows: they are constants of the base.
Training ends early when the loss on held-out edits no longer falls, and the best epoch counts.
Leaves groups to ``lessons``, and the file of a trained network to ``trained``.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from continual.errors import CeditError
from continual.gradients.lessons import LessonGroup, Outcome
from continual.gradients.matrices import EditableMatrix
from continual.gradients.networks import EditorNetwork
from continual.task_model import TaskModel
from store import canonical

STATE_FILE = "training.safetensors"
_META_KEY = "cedit"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class NetworkRecipe:
    """The settings of a network's training."""

    rank: int = 128
    epochs: int = 20
    patience: int = 3  # epochs without a lower loss on held-out edits, after which training ends
    learning_rate: float = 1e-5
    rate_learning_rate: float = 0.05  # of the logarithms of step sizes and ridges
    gradient_clip: float = 100.0
    edits: int = 8  # of a group: one step of the optimizer
    rephrases: int = 2  # of each edit, besides its prompt
    texts_beside: int = 4  # of each edit
    held_out_share: float = 0.1  # of the requests: they measure and do not teach
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.rank, self.epochs, self.patience, self.edits)
        if min(counts) < 1 or not 0.0 < self.held_out_share < 1.0:
            raise CeditError(
                "rank, epochs, patience and edits are at least 1, and held_out_share in (0, 1)."
            )

    def divided(self, items: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Return the items that teach, and the items that measure: one at least of each. Raises
        CeditError for fewer than two."""
        if len(items) < 2:
            raise CeditError(
                f"{len(items)} of the requests can be learned from: give at least two that the "
                "base answers wrongly."
            )
        order = list(items)
        random.Random(self.seed).shuffle(order)
        count = max(1, int(len(order) * self.held_out_share))
        return order[count:], order[:count]


@dataclass(frozen=True)
class NetworkEpoch:
    """The measurements of a network after an epoch, on held-out edits."""

    number: int  # from 1
    loss: float
    inside: float  # the share of prompts and rephrases with the new answer
    beside: float  # the share of tokens of other texts that lead as before
    is_best: bool


class NetworkTraining:
    """One run, with its state in a folder after every epoch."""

    def __init__(
        self,
        task_model: TaskModel,
        matrices: Sequence[EditableMatrix],
        network: EditorNetwork,
        recipe: NetworkRecipe,
        folder: Path,
    ) -> None:
        self._task_model, self._matrices = task_model, matrices
        self._network, self._recipe, self._folder = network, recipe, folder
        rates = [p for name, p in network.named_parameters() if _is_rate(name)]
        others = [p for name, p in network.named_parameters() if not _is_rate(name)]
        groups = [(others, recipe.learning_rate), (rates, recipe.rate_learning_rate)]
        self._optimizer = torch.optim.Adam(
            [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters]
        )
        self.epoch, self._stale, self._best_loss = 0, 0, float("inf")
        self._best: dict[str, Tensor] = {}

    def run(
        self,
        groups: Sequence[LessonGroup],
        held_out: Sequence[LessonGroup],
        identity: Mapping[str, Any],
    ) -> Iterator[NetworkEpoch]:
        """Train epoch after epoch; leave the network as it was at its best. `identity` names the
        base, the data and the method: a run is resumed only if it is the same. Raises CeditError if
        it is not."""
        meta = {"method": self._network.method, **asdict(self._recipe), **identity}
        if not self._resume(meta):
            self._network.prepare([edit for group in groups for edit in group.edits])
        while self.epoch < self._recipe.epochs and self._stale < self._recipe.patience:
            self._teach(groups)
            self.epoch += 1
            measured = self._measured(held_out)
            self._network.end_epoch(measured.inside)
            self._save(meta)
            yield measured
        self._network.load_state_dict(self._best)

    def clear(self) -> None:
        """Remove the state on disk."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _teach(self, groups: Sequence[LessonGroup]) -> None:
        order = list(groups)
        random.Random(f"{self._recipe.seed}|{self.epoch}").shuffle(order)
        for group in order:
            with torch.enable_grad():
                outcome = self._outcome(group)
                loss = self._network.loss(outcome.loss_inside, outcome.divergence)
            self._optimizer.zero_grad()
            loss.backward()
            parameters = list(self._network.parameters())
            norm = torch.nn.utils.clip_grad_norm_(parameters, self._recipe.gradient_clip)
            if bool(norm.isfinite()):
                self._optimizer.step()
            self._network.follow(float(outcome.divergence.detach()))

    def _outcome(self, group: LessonGroup) -> Outcome:
        paths = self._network.side_paths(group.edits)
        return group.under(self._task_model, self._matrices, paths)

    @torch.no_grad()
    def _measured(self, groups: Sequence[LessonGroup]) -> NetworkEpoch:
        outcomes = [self._outcome(group) for group in groups]
        losses = [float(self._network.score(o.loss_inside, o.divergence)) for o in outcomes]
        loss = sum(losses) / len(losses)
        is_best = loss < self._best_loss
        self._stale = 0 if is_best else self._stale + 1
        if is_best:
            self._best_loss = loss
            self._best = {n: t.detach().clone() for n, t in self._network.state_dict().items()}
        return NetworkEpoch(
            self.epoch,
            loss,
            sum(o.right for o in outcomes) / max(1, sum(o.texts_inside for o in outcomes)),
            sum(o.same for o in outcomes) / max(1, sum(o.tokens_beside for o in outcomes)),
            is_best,
        )

    # -- the state on disk

    def _save(self, meta: Mapping[str, Any]) -> None:
        tensors = {f"network.{n}": t for n, t in self._network.state_dict().items()}
        tensors |= {f"best.{n}": t for n, t in self._best.items()}
        for name, parameter in self._network.named_parameters():
            if state := self._optimizer.state.get(parameter):
                tensors |= {f"{key}.{name}": state[key] for key in _MOMENTS}
        progress = {"epoch": self.epoch, "stale": self._stale, "best": self._best_loss}
        text = canonical.dumps({"run": dict(meta), "progress": progress}).decode()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{STATE_FILE}.tmp"
        whole = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
        path.write_bytes(safetensors.torch.save(whole, metadata={_META_KEY: text}))
        path.replace(self._folder / STATE_FILE)

    def _resume(self, meta: Mapping[str, Any]) -> bool:
        """Go on from the state on disk; tell whether there was one."""
        path = self._folder / STATE_FILE
        if not path.exists():
            return False
        with safe_open(path, framework="pt") as file:
            kept = canonical.loads(file.metadata()[_META_KEY].encode())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if kept["run"] != canonical.loads(canonical.dumps(dict(meta))):
            raise CeditError(
                f"{self._folder} holds a run with other settings or requests: remove it, or name "
                "another file."
            )
        progress = kept["progress"]
        self.epoch, self._stale = progress["epoch"], progress["stale"]
        self._best_loss, self._best = progress["best"], _part(tensors, "best.")
        self._network.load_state_dict(_part(tensors, "network."))
        for name, parameter in self._network.named_parameters():
            if f"step.{name}" in tensors:
                self._optimizer.state[parameter] = {k: tensors[f"{k}.{name}"] for k in _MOMENTS}
        return True


def _is_rate(name: str) -> bool:
    """Tell whether a parameter is the logarithm of a step size or of a ridge."""
    return name.startswith("log_")


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
