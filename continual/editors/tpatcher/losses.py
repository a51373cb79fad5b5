"""The paper's losses (Huang et al. 2023, equations 5-9), on rows at the last FFN.

    l   = l_e + alpha·l_a + m·(l_m1 + l_m2)
    l_e   the edit's own task loss
    l_a   = S(-q_e·k - b; 5)              it fires on its own query
    l_m1  = S(M·k + b - beta; 1000)       it is silent on the memory M
    l_m2  = S((M - q_e)·k + b - gamma; 1000)   and far below its own activation there
    S(v; n) = Avg[TopN(exp(v))]

Many neurons at once: keys [n, d], and each loss is per neuron, [n].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bounds:
    """The bounds on scores over the memory, and the number of its rows that count."""

    beta: float = -3.0
    gamma: float = -3.0
    top: int = 1000


def mean_of_top_exponentials(scores: Tensor, count: int) -> Tensor:
    """Return S(v; n) over the last dimension, 0 without values. -inf is no value; if there are
    fewer than n values, all count."""
    highest = scores.topk(min(count, scores.shape[-1]), dim=-1).values
    return highest.exp().sum(-1) / (highest > -torch.inf).sum(-1).clamp(min=1)


def activation_loss(own_scores: Tensor, count: int = 5) -> Tensor:
    """Return l_a from q_e·k + b of the neuron's own queries [n, r]; inf is no query."""
    return mean_of_top_exponentials(-own_scores, count)


def memory_losses(
    memory_scores: Tensor, own_score: Tensor, bias: Tensor, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    """Return l_m1 and l_m2 from M·k [n, m], the edit's own q_e·k [n], and b [n]."""
    raised = memory_scores + bias[:, None]
    silent = mean_of_top_exponentials(raised - bounds.beta, bounds.top)
    below = mean_of_top_exponentials(raised - own_score[:, None] - bounds.gamma, bounds.top)
    return silent, below


def edit_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return l_e: the negative log-likelihood of each row's target, [..]."""
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), reduction="none"
    ).view(targets.shape)
