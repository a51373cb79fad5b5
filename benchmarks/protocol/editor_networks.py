"""Networks of editors by gradients for the protocol: trained on D_train, as their papers do.

An edit of training is an input of D_train with another example's answer, in its own wordings; the
texts beside it are of D_train, too. Nothing of D_edit or D_test is seen.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.protocol.settings import TaskSetting
from benchmarks.protocol.splits import AnsweredInput
from continual.base import load_base
from continual.choices import EDITORS
from continual.errors import CeditError
from continual.gradients.config import GradientConfig
from continual.gradients.teaching import NetworkJob
from continual.gradients.trained import NetworkFile
from continual.gradients.training import NetworkRecipe
from continual.model import EditedModel
from continual.requests import Request
from continual.site import Site
from continual.tasks import make_task, new_settings, task_class

WITH_NETWORK = ("mend", "malmen", "ke")


def teaching_requests(train: Sequence[AnsweredInput], count: int, seed: int) -> list[Request]:
    """Return `count` examples of D_train, each with the answer of another one that differs."""
    draw = random.Random(f"{seed}|networks")
    answers = sorted({example.answer for example in train})
    if len(answers) < 2:
        raise CeditError("All examples of D_train have one answer: no edit can be made of them.")
    requests = []
    for example in draw.sample(list(train), min(count, len(train))):
        others = [answer for answer in answers if answer != example.answer]
        record = {**example.request(), "target_new": draw.choice(others)}
        requests.append(Request.from_json(record))
    return requests


def network_table(
    setting: TaskSetting, editor: str, folder: Path, count: int, epochs: int, seed: int
) -> Mapping[str, str]:
    """Return the settings of an editor that name its network in a folder; it is trained first if it
    is not there. Raises CeditError for a model that it cannot be trained on."""
    path = (folder / f"{editor}.safetensors").absolute()
    if not path.exists():
        _train(setting, editor, path, count, NetworkRecipe(epochs=epochs, seed=seed))
    file = NetworkFile.of(path)
    return {"network": str(file.path), "network_digest": file.digest}


def _train(
    setting: TaskSetting, editor: str, path: Path, count: int, recipe: NetworkRecipe
) -> None:
    kind = EDITORS[editor].load()
    job = NetworkJob(kind.network_type, kind.reads_whole_texts, GradientConfig(), recipe)
    requests = teaching_requests(setting.splits.train, count, recipe.seed)
    began = time.perf_counter()
    with EditedModel(_base(setting)) as edited:
        task = make_task(edited.base, new_settings(edited.base, setting.engine_task))
        known = [task.encode(e.prompt, e.answer) for e in setting.splits.train[: 4 * count]]
        for epoch in job.run(Site(edited, task), requests, known, path):
            tables.note(
                f"network of {editor}: epoch {epoch.number}, in scope {epoch.inside:.3f}, beside "
                f"{epoch.beside:.3f}, {time.perf_counter() - began:.0f} s"
            )


def _base(setting: TaskSetting) -> Any:
    return load_base(str(setting.model), task_class(setting.engine_task).architecture)
