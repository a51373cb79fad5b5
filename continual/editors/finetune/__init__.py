"""Fine-tuning, the literature's baseline: Adam on some parameters, until an edit is right.

Huang et al. (ICLR 2023) name the variants FT(last), FT(all), FT(last)+KL and FT(all)+KL; FT-L is
Zhu et al.'s (2020), in the form that ROME's authors gave it for one matrix. Of a model that sees,
MMEdit (Cheng et al., EMNLP 2023) fine-tunes a part of the vision side.
"""

from continual.editors.finetune.config import (
    FtAllConfig,
    FtAllKlConfig,
    FtLastConfig,
    FtLastKlConfig,
    FtLConfig,
    FtVisionConfig,
)
from continual.editors.finetune.editor import FtAll, FtAllKl, FtL, FtLast, FtLastKl
from continual.editors.finetune.vision import FtVision

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
    "FtVision",
    "FtVisionConfig",
]
