"""The queries of all tokens of probes at some places, as a running model shows them.

Knows passes and places of gates; leaves to the ledger what is kept of the queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from continual import hooks
from continual.effects.places import GatePlace
from continual.passes.partial import logits_of
from continual.task_model import TaskModel, length_sorted
from continual.tasks import Encoding


@torch.inference_mode()
def token_queries(
    model: TaskModel, encodings: Sequence[Encoding], places: Sequence[GatePlace]
) -> Mapping[GatePlace, list[Tensor]]:
    """[T, d] float32: the queries at each place of every token that goes in (`Encoding.ids`), for
    probes that are each a sequence of its own, with all that is on the model."""
    found: dict[GatePlace, dict[int, Tensor]] = {place: {} for place in places}
    for batch in length_sorted(encodings):
        chosen = [encodings[i] for i in batch]
        for place, queries in _shown(model, chosen, places).items():
            states = queries.float().view(len(chosen), -1, queries.shape[-1])
            for i, encoding, own in zip(batch, chosen, states, strict=True):
                found[place][i] = own[: len(encoding.ids)]
    return {
        place: [states[i].clone() for i in range(len(encodings))] for place, states in found.items()
    }


def _shown(
    model: TaskModel, encodings: Sequence[Encoding], places: Sequence[GatePlace]
) -> dict[GatePlace, Tensor]:
    """The queries [.., d] of one pass, which ends with the last block."""
    edited, inputs = model.edited, model.inputs(encodings)
    mounts = {place: edited.mount(place) for place in places}
    with ExitStack() as stack:
        shown = {place: stack.enter_context(mount.shown()) for place, mount in mounts.items()}
        last = edited.anatomy.block(edited.model, edited.anatomy.last)
        stack.enter_context(hooks.cut_short(last))
        hooks.run_until_cut(lambda: logits_of(edited.model, inputs))
    return {place: queries for place, (queries,) in shown.items()}
