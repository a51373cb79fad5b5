"""Integrated gradients over the rows of FFNs (Dai et al. 2022, equation 3).

    Attr_i = (w̄_i / m) · Σ_{k=0}^{m−1} ∂P(answer)/∂w_i at w = (k/m)·w̄

a left Riemann sum that starts at the zero row; the whole row of one block is scaled, all other
blocks and positions follow. P is the probability of the gold token, and for an answer of several
tokens all is the mean over them. As m grows, the sum over a block's neurons tends to P(w̄) − P(0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.analysis.neurons.gold import GoldToken
from continual.analysis.neurons.passes import PassMaker, ScaledPass
from continual.errors import CeditError

STEPS = 20
"""The published number m of steps."""
STEPS_MAX = 1000


@dataclass(frozen=True)
class AnswerAttribution:
    """The attribution of an answer to all neurons, and the model's own opinion of it."""

    scores: Tensor  # [L, d_ff] Attr, float32 on the CPU
    activations: Tensor  # [L, d_ff] w̄
    probability: float  # P(answer), the mean over its tokens
    is_right: bool  # each token is the likeliest one


def attribute(
    passes: PassMaker, answer: Sequence[GoldToken], steps: int = STEPS
) -> AnswerAttribution:
    """Attribute an answer to the neurons of all FFNs. Raises CeditError for a number of steps that
    is out of range, ModelError for logits that are not finite."""
    if not 1 <= steps <= STEPS_MAX:
        raise CeditError(f"{steps} steps cannot be taken: their number is 1 to {STEPS_MAX}.")
    runs = [passes.read(gold) for gold in answer]
    return AnswerAttribution(
        _mean([_scores(run, steps) for run in runs]),
        _mean([run.rows.float() for run in runs]),
        sum(run.probability for run in runs) / len(runs),
        all(run.is_right for run in runs),
    )


def _scores(run: ScaledPass, steps: int) -> Tensor:
    """Return Attr [L, d_ff] of one gold token."""
    scales = torch.arange(steps, device=run.rows.device) / steps
    return run.rows.float() / steps * run.gradients(scales)


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.detach().cpu() for part in parts]).mean(0)
