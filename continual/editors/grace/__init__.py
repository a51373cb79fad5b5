"""GRACE (Hartvigsen et al. 2023): a codebook whose values stand in for a layer's output."""

from continual.editors.grace.config import GraceConfig
from continual.editors.grace.editor import Grace

__all__ = ["Grace", "GraceConfig"]
