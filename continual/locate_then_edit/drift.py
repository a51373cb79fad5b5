"""The drift of an edited matrix from the base's, measured on its outputs for ordinary tokens.

The size of ΔW alone says little. An update along C₀⁻¹ is large where keys are rare, and ordinary
tokens hardly meet it; the same size in a direction that all keys have destroys a model.
"""

from __future__ import annotations

import torch
from torch import Tensor


def drift_of(base: Tensor, change: Tensor, moment: Tensor) -> float:
    """Return √(E‖kΔW‖² / E‖kW‖²) over the keys of the statistics: the root mean square move of the
    matrix's output, relative to that output.

    `base` W and `change` ΔW [d_ff, d], `moment` C₀ = E[kᵀk] [d_ff, d_ff], all float32.
    """
    change_energy, base_energy = (
        torch.sum(matrix * (moment @ matrix)) for matrix in (change, base)
    )
    return float((change_energy.clamp(min=0.0) / base_energy).sqrt())
