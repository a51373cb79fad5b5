"""The second moment C₀ of a matrix's inputs on the bare base: where an update had better be small.

Read over texts that stand in the history: general text in memory, and training probes. So it is the
same at every step of a history, for any matrix, and needs no collected statistics. Leaves its
weight to ``config``, and the system to ``ridge``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from continual import hooks
from continual.errors import ModelError
from continual.passes.partial import logits_of
from continual.proposals import KnownAnswers
from continual.task_model import TaskModel
from continual.tasks import Encoding, Question, sequences

PROBES_MAX = 512
"""Training probes that are read, at most."""


def base_texts(known_answers: KnownAnswers, seed: int) -> list[Encoding]:
    """Return the general texts, and training probes drawn by the seed, each a sequence of its
    own."""
    probes = known_answers.training
    order = torch.randperm(len(probes), generator=torch.Generator().manual_seed(seed))
    chosen = [probes[place] for place in sorted(order[:PROBES_MAX].tolist())]
    general = [Encoding(Question(ids), (), ()) for ids in known_answers.general]
    return [*general, *sequences(chosen)[0]]


def input_moments(
    task_model: TaskModel, modules: Mapping[str, nn.Module], texts: Sequence[Encoding]
) -> dict[str, Tensor]:
    """Return the mean of hᵀh [inputs, inputs] float64 over the tokens of one text or more, for each
    linear layer, on the bare base. Raises ModelError for a layer that does not run once in a
    pass."""
    with task_model.edited.bare():
        parts = task_model.in_passes(partial(_inputs, task_model, modules), texts)
    moments: dict[str, Tensor] = {}
    for name in modules:
        rows = [of_text[name].double() for of_text in parts]
        total = sum((part.T @ part for part in rows), torch.zeros(()))
        moments[name] = total / sum(map(len, rows))
    return moments


@torch.no_grad()
def _inputs(
    task_model: TaskModel, modules: Mapping[str, nn.Module], texts: Sequence[Encoding]
) -> list[dict[str, Tensor]]:
    """Return the inputs [tokens, inputs] float32 of each layer, text by text, in one pass."""
    seen: dict[str, list[Tensor]] = {name: [] for name in modules}
    with hooks.watched(modules, lambda name, call: seen[name].append(call.input)):
        logits_of(task_model.edited.model, task_model.inputs(texts))
    if odd := [name for name, calls in seen.items() if len(calls) != 1]:
        raise ModelError(
            f"{odd[0]} ran {len(seen[odd[0]])} times in one pass: choose other blocks."
        )
    states = {
        name: calls[0].float().reshape(len(texts), -1, calls[0].shape[-1]).cpu()
        for name, calls in seen.items()
    }
    return [
        {name: tensor[i, : len(text.ids)] for name, tensor in states.items()}
        for i, text in enumerate(texts)
    ]
