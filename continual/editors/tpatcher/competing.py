"""Chooses the logits that compete while values are trained: the highest few hundred, the targets.

A step over a vocabulary of 50,000 costs as much as reading the whole head from memory, and the
logits far below take no part in the loss. So values are trained on rows sliced from the head, and
all logits judge the result. If the way to the logits does not end in a plain linear head, the
vocabulary is small, or a slice would spare nothing, all logits compete.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from continual.editors.tpatcher.losses import edit_loss
from continual.editors.tpatcher.training import Slots
from continual.passes.row_tail import RowTail
from continual.site import LOGITS_MAX, Site
from continual.site.rows import Rows
from continual.verdicts import Verdict

VOCABULARY_MIN = 4096  # tokens: a smaller head is read as fast as it is sliced


@dataclass(frozen=True)
class CompetingTokens:
    """The answers of rows before an edit, and the tokens that compete for each."""

    hidden: Tensor  # [n, d] with the neurons that are on
    verdict: Verdict
    rivals: Tensor | None  # [n, count] the tokens of the highest logits; None if not asked for


@torch.no_grad()
def survey(site: Site, rows: Rows, count: int) -> CompetingTokens:
    """Survey rows over the whole vocabulary, in parts that fit; no rivals for a `count` of 0."""
    hidden = site.patched(rows)
    size = max(1, LOGITS_MAX // site.choices)
    right, close, rivals = [], [], []
    for start in range(0, len(rows), size):
        piece = hidden[start : start + size]
        verdict = site.verdict(piece, rows.targets[start : start + size])
        right.append(verdict.right)
        close.append(verdict.close)
        if count:
            logits = site.logits(piece)
            rivals.append(logits.topk(min(count, logits.shape[-1]), sorted=False).indices)
    verdict = Verdict(torch.cat(right), torch.cat(close))
    return CompetingTokens(hidden, verdict, torch.cat(rivals) if rivals else None)


@dataclass(frozen=True)
class NormAndHead:
    """One LayerNorm and one linear head, both in float32."""

    norm: nn.LayerNorm
    weight: Tensor  # [tokens, d]
    bias: Tensor | None  # [tokens]

    @classmethod
    def of(cls, tail: RowTail) -> NormAndHead | None:
        """Return the norm and the head of such a tail; None for any other tail."""
        if [type(step) for step in tail.steps] != [nn.LayerNorm, nn.Linear]:
            return None
        norm, head = tail.steps
        assert isinstance(norm, nn.LayerNorm) and isinstance(head, nn.Linear)
        return cls(norm, head.weight, head.bias) if head.weight.dtype == torch.float32 else None

    @torch.no_grad()
    def gradient(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Return [n, d] the gradient of each row's l_e by the row [n, d], for targets [n]."""
        norm, shape = self.norm, self.norm.normalized_shape
        normed, mean, scale = torch.native_layer_norm(rows, shape, norm.weight, norm.bias, norm.eps)
        error = nn.functional.linear(normed, self.weight, self.bias).softmax(-1)
        error.scatter_(1, targets[:, None], -1.0, reduce="add")
        back: Tensor = torch.ops.aten.native_layer_norm_backward(
            error @ self.weight, rows, shape, mean, scale, norm.weight, norm.bias, _ROWS_ONLY
        )[0]
        return back


_ROWS_ONLY = [True, False, False]


@dataclass(frozen=True)
class Readout:
    """The way from residual sums [.., d] to logits [.., tokens], and back down l_e's gradient."""

    read: Callable[[Tensor], Tensor]  # [n, d] → [n, tokens] in float32
    plain: NormAndHead | None  # the same as a norm and a head, if it consists of just these

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits of residual sums of any number of dimensions; differentiable."""
        logits = self.read(hidden.flatten(0, -2))
        return logits.view(*hidden.shape[:-1], logits.shape[-1])

    def gradient(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return [.., d] the gradient of each row's l_e by its residual sum, for targets [..]."""
        rows, target_tokens = hidden.flatten(0, -2), targets.flatten()
        if self.plain is not None:
            return self.plain.gradient(rows, target_tokens).view_as(hidden)
        return self._by_autograd(rows, target_tokens).view_as(hidden)

    def _by_autograd(self, rows: Tensor, targets: Tensor) -> Tensor:
        rows = rows.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(edit_loss(self.read(rows), targets).sum(), rows)
        assert isinstance(gradient, Tensor)
        return gradient


def whole(site: Site) -> Readout:
    """Return the readout of all logits."""
    return Readout(partial(_logits, site.tail, site.dtype), NormAndHead.of(site.tail))


def competing(site: Site, slots: Slots, rivals: Tensor) -> tuple[Slots, Readout] | None:
    """Return the slots with targets numbered among the competing tokens, and these tokens' readout.

    `rivals` are the competing token ids, [n] in any order, repeats and all. Returns None if all
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
    plain = NormAndHead.of(site.tail)
    if plain is not None:
        plain = replace(plain, weight=weight, bias=bias)
    return sliced, Readout(partial(_logits, tail, weight.dtype), plain)


def _logits(tail: RowTail, dtype: torch.dtype, hidden: Tensor) -> Tensor:
    return tail(hidden.to(dtype)).float()
