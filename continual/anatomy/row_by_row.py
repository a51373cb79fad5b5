"""Checks whether a model's last FFN can be run for some positions of a batch alone."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from continual import hooks
from continual.anatomy.observing import WANTS_OTHER_INPUTS, sample_inputs
from continual.anatomy.structure import Anatomy
from continual.out_of_memory import is_out_of_memory

ROWWISE_LENGTHS = (9, 5)  # of the sequences on which an FFN is run for some positions alone


@torch.no_grad()
def runs_row_by_row(model: Any, anatomy: Anatomy) -> bool:
    """Tell whether the last FFN has the same output for some positions alone as for all: a module
    that looks like an FFN may read along the sequence, or need its shape, and then raises some
    error."""
    inputs, rows = _rowwise_sample(model)
    block = anatomy.block(model, anatomy.last)
    norm = anatomy.norm_after_module(model, anatomy.last)
    ends = anatomy.up_modules(model, anatomy.last), anatomy.down_module(model, anatomy.last)
    sums = []
    for hook in (nullcontext(), hooks.narrowed(*ends, rows)):
        with hooks.captured(block if norm is None else norm) as calls, hook, hooks.cut_short(block):
            try:
                hooks.run_until_cut(lambda: model(**inputs, use_cache=False, return_dict=True))
                states = calls[0].hidden if norm is None else calls[0].input
                sums.append(states.reshape(-1, anatomy.width).index_select(0, rows))
            except WANTS_OTHER_INPUTS as error:
                if is_out_of_memory(error):
                    raise
                return False
    all_sums, row_sums = sums
    digits = math.sqrt(torch.finfo(all_sums.dtype).eps)
    return bool((row_sums - all_sums).abs().max() <= digits * all_sums.abs().max())


def _rowwise_sample(model: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Make two sequences of unlike lengths, and choose some of their positions, counted through the
    batch."""
    longest, shortest = ROWWISE_LENGTHS
    inputs = {name: ids.repeat(2, 1) for name, ids in sample_inputs(model, longest).items()}
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, shortest:] = 0
    rows = torch.arange(1, longest + shortest, 3, device=mask.device)
    return {**inputs, "attention_mask": mask}, rows
