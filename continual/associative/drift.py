"""How far an edited matrix is from the base's: by what it gives to other tokens.

The size of ΔW alone does not tell. An update that goes the way of C₀⁻¹ is large where keys are
rare, and is hardly seen there; the same size in a direction that all keys have destroys a model.
"""

from __future__ import annotations

import torch
from torch import Tensor


def drift_of(base: Tensor, change: Tensor, moment: Tensor) -> float:
    """√(E‖kΔW‖² / E‖kW‖²) over the keys of the statistics: what the matrix gives to a token is
    moved by so much of its own size, as the root of the mean square.

    `base` W and `change` ΔW [d_ff, d], `moment` C₀ = E[kᵀk] [d_ff, d_ff], all float32.
    """
    moved, given = (torch.sum(matrix * (moment @ matrix)) for matrix in (change, base))
    return float((moved.clamp(min=0.0) / given).sqrt())
