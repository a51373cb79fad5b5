"""Pins the lengths of values to those that they have on the base model (NAS, 2602.02543).

Along a stream each value is searched for on a model that earlier values have made longer, and so
they grow. NAS rescales v* to the mean length of pilots that were searched for on the clean model;
here the pilots are the batch's own requests, so that a step depends on nothing but the step. Knows
values; leaves the search to `targets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from continual.locate_then_edit.config import ValueSearchConfig
from continual.locate_then_edit.edit_texts import EditTexts
from continual.locate_then_edit.targets import TargetValues, find_targets
from continual.site import Site

DROPPED = 0.05
"""The share of pilots, the longest ones, that the mean leaves out."""
LONGEST = 2.0
"""Values of this many mean lengths are given up: they did not arrive."""


def pinned(
    site: Site,
    batch: Sequence[EditTexts],
    targets: TargetValues,
    block: int,
    config: ValueSearchConfig,
) -> TargetValues:
    """Return the values of a batch at a block, rescaled to the mean length of its pilots. A value
    that is far too long counts as one that did not arrive. Searches again if matrices are edited
    at the block or below."""
    if not batch:
        return targets
    pilots = targets
    if any(edited <= block for edited in site.edited.reach.blocks):
        with site.edited.bare():
            pilots = find_targets(site, batch, block, config)
    length = mean_length(pilots.states)
    lengths = torch.linalg.vector_norm(targets.states, dim=1)
    is_short = (lengths <= LONGEST * length).tolist()
    arrived = tuple(a and s for a, s in zip(targets.arrived, is_short, strict=True))
    states = targets.states * (length / lengths)[:, None]
    return replace(targets, states=states, arrived=arrived)


def mean_length(states: Tensor) -> float:
    """Return the mean length of values [n, d] without the longest DROPPED of them."""
    lengths = torch.linalg.vector_norm(states, dim=1).sort().values
    kept = max(1, round((1.0 - DROPPED) * len(lengths)))
    return float(lengths[:kept].mean())
