"""Trains a method's network for a base model on requests, and leaves its file.

Knows how requests become groups, and when a run is the same as an interrupted one. Leaves the steps
to ``training``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from continual.errors import CeditError
from continual.gradients.config import GradientConfig
from continual.gradients.lessons import LessonMaker
from continual.gradients.matrices import chosen_matrices
from continual.gradients.networks import EditorNetwork, NetworkForm
from continual.gradients.trained import NetworkFile
from continual.gradients.training import NetworkEpoch, NetworkRecipe, NetworkTraining
from continual.requests import Request
from continual.task_model import TaskModel
from continual.tasks import Encoding
from store import canonical


@dataclass(frozen=True)
class NetworkJob:
    """A network to train: its method, its matrices, and what it is trained with."""

    kind: type[EditorNetwork]
    whole: bool  # rows of all tokens; see `GradientEditor.reads_whole_texts`
    choice: GradientConfig  # of the matrices
    recipe: NetworkRecipe

    def run(
        self,
        task_model: TaskModel,
        requests: Sequence[Request],
        known: Sequence[Encoding],
        out: Path,
    ) -> Iterator[NetworkEpoch]:
        """Train a network on the bare base, and leave it in the new file `out`, whole or not at
        all.

        Yields after every epoch. The state of an interrupted run lies beside `out`, and the same
        call goes on from there. `known` are texts that the base answers rightly. Raises CeditError
        where `out` is taken or too little can be learned.
        """
        if out.exists():
            raise CeditError(f"{out} exists: name a new file, or remove it.")
        recipe, edited = self.recipe, task_model.edited
        matrices = chosen_matrices(edited, self.choice)
        maker = LessonMaker(
            task_model,
            matrices,
            recipe.edits,
            recipe.rephrases,
            recipe.texts_beside,
            recipe.seed,
            self.kind.condition,
            self.whole,
        )
        train_edits, test_edits = recipe.divided(maker.taught(requests, known))
        shapes = {matrix.path: matrix.shape for matrix in matrices}
        network = self._network(NetworkForm(shapes, self.kind.size(task_model, recipe.rank)))
        folder = out.with_name(f"{out.name}.partial")
        training = NetworkTraining(task_model, matrices, network, recipe, folder)
        identity = {
            "base": edited.base.fingerprint,
            "matrices": [[path, *shape] for path, shape in shapes.items()],
            "requests": _digest([request.id for request in requests]),
            "known": len(known),
        }
        yield from training.run(
            list(maker.groups(train_edits)), list(maker.groups(test_edits)), identity
        )
        NetworkFile.write(out, network, edited.base.fingerprint, asdict(recipe))
        training.clear()

    def _network(self, form: NetworkForm) -> EditorNetwork:
        """Return a new network, drawn by the recipe's seed."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.recipe.seed)
            return self.kind(form)


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical.dumps(value)).hexdigest()
