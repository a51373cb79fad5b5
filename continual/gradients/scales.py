"""The search for the size of each edit's update: it is doubled until the answer leads.

Puts updates on the model and takes them off again. Leaves their directions to the editor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from continual.passes.partial import logits_of
from continual.patches.gradient import GradientPatch
from continual.task_model import TaskModel, answer_logits
from continual.tasks import Encoding

Scales = Mapping[str, float]
"""The multiple of each edit's update, by request."""


@dataclass(frozen=True)
class ScaleSearch:
    """Doubles the updates of some edits until their answers lead, all updates being on the model at
    once."""

    task_model: TaskModel
    patch: Callable[[Scales], GradientPatch]
    texts: Mapping[str, Sequence[Encoding]]  # of each edit
    scale_max: float
    margin: float  # logits

    def run(self, start: Scales) -> tuple[dict[str, float], dict[str, float]]:
        """Return the scales, and the leads of the edits that never reach the margin."""
        scales = dict(start)
        while short := self._short(scales):
            growing = [owner for owner in short if 2 * scales[owner] <= self.scale_max]
            if not growing:
                return scales, short
            for owner in growing:
                scales[owner] *= 2
        return scales, {}

    def _short(self, scales: Scales) -> dict[str, float]:
        """Return the leads below the margin, by edit; NaN is below it."""
        leads = self.leads(scales)
        return {owner: lead for owner, lead in leads.items() if not lead >= self.margin}

    def leads(self, scales: Scales) -> dict[str, float]:
        """Return the smallest lead of each edit's answers, in logits, with the updates on."""
        texts = [text for edit_texts in self.texts.values() for text in edit_texts]
        with _on(self.task_model, self.patch(scales)):
            leads = iter(self.task_model.in_passes(partial(_lead, self.task_model), texts))
        return {owner: min(next(leads) for _ in texts) for owner, texts in self.texts.items()}


@torch.no_grad()
def _lead(task_model: TaskModel, encodings: Sequence[Encoding]) -> list[float]:
    """Return the smallest lead of each text's answer tokens over all other tokens, in one pass."""
    logits, targets = answer_logits(
        encodings, logits_of(task_model.edited.model, task_model.inputs(encodings))
    )
    wanted = logits.gather(1, targets[:, None]).squeeze(1)
    others = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
    sizes = [len(encoding.targets) for encoding in encodings]
    return [float(lead.min()) for lead in (wanted - others).split(sizes)]


@contextmanager
def _on(task_model: TaskModel, patch: GradientPatch) -> Iterator[None]:
    """Have a patch on the model within `with`."""
    edited, depth = task_model.edited, task_model.edited.depth
    edited.put([patch])
    try:
        yield
    finally:
        edited.take_off(depth)
