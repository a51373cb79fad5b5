"""Fine-tuning, what the literature compares with: Adam on some parameters, until an edit is right.

Huang et al. (ICLR 2023) call them FT(last), FT(all), FT(last)+KL and FT(all)+KL; FT-L is Zhu et
al.'s (2020), as ROME's authors made it for one matrix.
"""

from continual.editors.finetune.config import (
    FtAllConfig,
    FtAllKlConfig,
    FtLastConfig,
    FtLastKlConfig,
    FtLConfig,
)
from continual.editors.finetune.editor import FtAll, FtAllKl, FtL, FtLast, FtLastKl

__all__ = [
    "FtAll",
    "FtAllConfig",
    "FtAllKl",
    "FtAllKlConfig",
    "FtL",
    "FtLConfig",
    "FtLast",
    "FtLastConfig",
    "FtLastKl",
    "FtLastKlConfig",
]
