"""The noise that corrupts a subject, by the spread of subjects' embeddings.

σ is the standard deviation over all numbers of the embedding rows of the subjects' tokens, one
number for a set of facts (Meng et al. 2022, appendix B.1). The draws are standard normal, and of
one seed for every fact.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from continual.analysis.tracing.facts import TracedFact
from continual.analysis.tracing.modules import RestorableModel


def deviation(model: RestorableModel, token_ids: Iterable[int]) -> float:
    """Return the standard deviation of the embeddings of these tokens, each as often as it is
    given; summed in float64, in order."""
    ids = torch.tensor(list(token_ids), dtype=torch.long, device=model.device)
    rows = model.embeddings.detach()[ids].double().cpu()
    return float(rows.std(correction=0))


def drawn(model: RestorableModel, fact: TracedFact, draws: int, seed: int, scale: float) -> Tensor:
    """Return noise [draws, subject tokens, e] of standard deviation `scale`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (draws, len(fact.sequence.subject), model.embeddings.shape[1])
    return (scale * torch.randn(shape, generator=generator)).to(model.device)
