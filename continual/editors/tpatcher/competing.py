"""Which logits compete while values are trained: the highest few hundred, and the targets.

A step over a vocabulary of 50,000 costs as much as reading the whole head from memory, and the
logits far below take no part in the loss. So values are trained on rows sliced from the head, and
all logits judge the result. Where the way to the logits does not end in a plain linear head, or a
slice would spare nothing, all of them compete.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from continual.editors.tpatcher.training import Logits, Slots
from continual.partial import RowTail
from continual.site import LOGITS_MAX, Rows, Site, Verdict, verdict_of


@dataclass(frozen=True)
class Survey:
    """What rows answer before an edit, and which tokens are in the running for each."""

    hidden: Tensor  # [n, d] with the neurons that are on
    verdict: Verdict
    rivals: Tensor  # [n, count] the tokens of the highest logits


@torch.no_grad()
def survey(site: Site, rows: Rows, count: int) -> Survey:
    """One pass over the whole vocabulary, in parts that fit."""
    vocabulary: int = site.edited.model.config.get_text_config().vocab_size
    hidden = site.patched(rows)
    size = max(1, LOGITS_MAX // vocabulary)
    right, close, rivals = [], [], []
    for first in range(0, len(rows), size):
        logits = site.logits(hidden[first : first + size])
        verdict = verdict_of(logits, rows.targets[first : first + size], site.tie)
        right.append(verdict.right)
        close.append(verdict.close)
        rivals.append(logits.topk(min(count, logits.shape[-1]), sorted=False).indices)
    return Survey(hidden, Verdict(torch.cat(right), torch.cat(close)), torch.cat(rivals))


def whole(site: Site) -> Logits:
    """All logits, for residual sums of any number of dimensions."""
    return _flat(site.logits)


def competing(site: Site, slots: Slots, rivals: Tensor) -> tuple[Slots, Logits] | None:
    """The slots with their targets counted among the competing tokens, and those tokens' logits.

    `rivals` are the token ids in the running, [n] in any order, repeats and all. None where all
    logits should compete.
    """
    head = site.tail.steps[-1]
    if type(head) is not nn.Linear:
        return None
    tokens = torch.cat([rivals.flatten(), slots.targets.flatten()]).unique()
    if 2 * len(tokens) > head.out_features:
        return None
    bias = None if head.bias is None else head.bias[tokens]
    slice_ = partial(nn.functional.linear, weight=head.weight[tokens], bias=bias)
    tail = replace(site.tail, steps=(*site.tail.steps[:-1], slice_))
    sliced = replace(slots, targets=torch.searchsorted(tokens, slots.targets))
    return sliced, _flat(partial(_logits, tail, head.weight.dtype))


def _logits(tail: RowTail, dtype: torch.dtype, hidden: Tensor) -> Tensor:
    return tail(hidden.to(dtype)).float()


def _flat(logits: Callable[[Tensor], Tensor]) -> Logits:
    return lambda hidden: logits(hidden.flatten(0, -2)).unflatten(0, hidden.shape[:-1])
