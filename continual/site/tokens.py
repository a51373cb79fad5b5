"""The queries of all tokens of probes at some places, as a running model shows them.

Knows passes and places of gates; leaves keeping the queries to the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from continual import hooks
from continual.effects.places import GatePlace
from continual.passes.partial import logits_of
from continual.task_model import TaskModel
from continual.tasks import Encoding


def token_queries(
    model: TaskModel, encodings: Sequence[Encoding], places: Sequence[GatePlace]
) -> Mapping[GatePlace, list[Tensor]]:
    """Read the queries [T, d] float32 of every input token (`Encoding.ids`) at each place, for each
    probe, with all patches on the model. No two probes may share a sequence."""
    probe_queries = model.in_passes(partial(_shown, model, places), encodings)
    return {place: [of_probe[place] for of_probe in probe_queries] for place in places}


@torch.inference_mode()
def _shown(
    model: TaskModel, places: Sequence[GatePlace], encodings: Sequence[Encoding]
) -> list[dict[GatePlace, Tensor]]:
    """Read the queries of each probe in one pass, which ends with the last block."""
    edited, inputs = model.edited, model.inputs(encodings)
    mounts = {place: edited.mount(place) for place in places}
    with ExitStack() as stack:
        shown = {place: stack.enter_context(mount.shown()) for place, mount in mounts.items()}
        last_block = edited.anatomy.block(edited.model, edited.anatomy.last)
        stack.enter_context(hooks.cut_short(last_block))
        hooks.run_until_cut(lambda: logits_of(edited.model, inputs))
    states = {
        place: queries.float().reshape(len(encodings), -1, queries.shape[-1])
        for place, (queries,) in shown.items()  # some blocks give their FFN flat rows
    }
    return [
        {place: states[place][i, : len(encoding.ids)].clone() for place in places}
        for i, encoding in enumerate(encodings)
    ]
