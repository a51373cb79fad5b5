"""Which logits compete while values are trained: the highest few hundred, and the targets.

A step over a vocabulary of 50,000 costs as much as reading the whole head from memory, and the
logits far below take no part in the loss. So values are trained on rows sliced from the head, and
all logits judge the result. Where the way to the logits does not end in a plain linear head, the
vocabulary is small, or a slice would spare nothing, all of them compete.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from continual.editors.tpatcher.losses import edit_loss
from continual.editors.tpatcher.training import Slots
from continual.partial import RowTail
from continual.site import LOGITS_MAX, Rows, Site, Verdict, verdict_of

VOCABULARY_MIN = 4096  # tokens: a smaller head is read as fast as it is sliced


@dataclass(frozen=True)
class Survey:
    """What rows answer before an edit, and which tokens are in the running for each."""

    hidden: Tensor  # [n, d] with the neurons that are on
    verdict: Verdict
    rivals: Tensor | None  # [n, count] the tokens of the highest logits, where they were asked for


@torch.no_grad()
def survey(site: Site, rows: Rows, count: int) -> Survey:
    """One pass over the whole vocabulary, in parts that fit; no rivals for a `count` of 0."""
    hidden = site.patched(rows)
    size = max(1, LOGITS_MAX // site.choices)
    right, close, rivals = [], [], []
    for first in range(0, len(rows), size):
        logits = site.logits(hidden[first : first + size])
        verdict = verdict_of(logits, rows.targets[first : first + size], site.tie)
        right.append(verdict.right)
        close.append(verdict.close)
        if count:
            rivals.append(logits.topk(min(count, logits.shape[-1]), sorted=False).indices)
    verdict = Verdict(torch.cat(right), torch.cat(close))
    return Survey(hidden, verdict, torch.cat(rivals) if rivals else None)


@dataclass(frozen=True)
class Readout:
    """The way from residual sums [.., d] to logits [.., tokens], and back down l_e's gradient."""

    tail: RowTail
    weight: Tensor | None  # [tokens, d] of a plain linear head in float32 behind a plain norm
    read: Callable[[Tensor], Tensor]  # [n, d] → [n, tokens] in float32

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits of residual sums of any number of dimensions; differentiable."""
        found = self.read(hidden.flatten(0, -2))
        return found.view(*hidden.shape[:-1], found.shape[-1])

    def gradient(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """[.., d] the gradient of each row's l_e by its residual sum, for targets [..]."""
        rows, wanted = hidden.flatten(0, -2), targets.flatten()
        if self.weight is None:
            return self._by_autograd(rows, wanted).view_as(hidden)
        with torch.no_grad():
            error = self.read(rows).softmax(-1)
            error.scatter_(1, wanted[:, None], -1.0, reduce="add")
            return _behind_norm(self.tail.steps[0], rows, error @ self.weight).view_as(hidden)

    def _by_autograd(self, rows: Tensor, targets: Tensor) -> Tensor:
        rows = rows.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(edit_loss(self.read(rows), targets).sum(), rows)
        assert isinstance(gradient, Tensor)
        return gradient


def _behind_norm(norm: Any, rows: Tensor, gradient: Tensor) -> Tensor:
    """The gradient [n, d] at a LayerNorm's output, taken back to its input rows [n, d]."""
    shape = norm.normalized_shape
    _, mean, scale = torch.native_layer_norm(rows, shape, norm.weight, norm.bias, norm.eps)
    back: Tensor = torch.ops.aten.native_layer_norm_backward(
        gradient, rows, shape, mean, scale, norm.weight, norm.bias, [True, False, False]
    )[0]
    return back


def whole(site: Site) -> Readout:
    """All logits."""
    tail = site.tail
    return Readout(tail, _plain_weight(tail), site.logits)


def _plain_weight(tail: RowTail) -> Tensor | None:
    """The head's weight, where the tail is one LayerNorm and one linear head in float32."""
    head = tail.steps[-1]
    if [type(step) for step in tail.steps] != [nn.LayerNorm, nn.Linear]:
        return None
    assert isinstance(head, nn.Linear)
    weight: Tensor = head.weight
    return weight if weight.dtype == torch.float32 else None


def competing(site: Site, slots: Slots, rivals: Tensor) -> tuple[Slots, Readout] | None:
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
    weight = head.weight[tokens]
    slice_ = partial(nn.functional.linear, weight=weight, bias=bias)
    tail = replace(site.tail, steps=(*site.tail.steps[:-1], slice_))
    sliced = replace(slots, targets=torch.searchsorted(tokens, slots.targets))
    read = partial(_logits, tail, weight.dtype)
    return sliced, Readout(tail, None if _plain_weight(site.tail) is None else weight, read)


def _logits(tail: RowTail, dtype: torch.dtype, hidden: Tensor) -> Tensor:
    return tail(hidden.to(dtype)).float()
