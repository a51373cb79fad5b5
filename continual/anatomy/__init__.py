"""A transformers model's blocks, its FFN matrices and the path to its logits.

They are found by structure, never by the name of an architecture. One forward pass over a single
token shows the order in which the modules run, which the order of their declaration does not: the
blocks are the longest list of equal modules with an FFN in each, the FFN is the widest pair of
matrices d → d_ff → d outside attention, and the tail is every module that runs behind the last FFN.
An override by name corrects a wrong finding.

``structure`` has the result, and the two sites at which a block can be edited. ``observing``
records a pass; ``blocks``, ``ffn`` and ``logit_path`` find the parts, ``row_by_row`` checks the
FFN, and ``finding`` puts all together; ``overrides`` reads the names that a user gives. Leaves
running a model in parts to ``passes``.
"""

from continual.anatomy.ffn import is_turned
from continual.anatomy.finding import enclosing_modules, find_anatomy
from continual.anatomy.observing import (
    WANTS_OTHER_INPUTS,
    observe,
    reads_ahead,
    sample_inputs,
)
from continual.anatomy.structure import Anatomy

__all__ = [
    "WANTS_OTHER_INPUTS",
    "Anatomy",
    "enclosing_modules",
    "find_anatomy",
    "is_turned",
    "observe",
    "reads_ahead",
    "sample_inputs",
]
