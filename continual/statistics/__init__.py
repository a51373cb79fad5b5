"""Key statistics: C₀ = E[k kᵀ] of the key activations of a block, over text, on the bare base.

A key is the input of a block's ``down`` matrix at one token of a text, padding left out. ROME (Meng
et al. 2022, equation 2) and MEMIT (Meng et al. 2023, equations 14 and 15) weigh by C₀ the effect of
an edit on everything else.

``texts`` reads texts, ``windows`` cuts them, ``moments`` sums keys, and ``collecting`` lets an
interrupted run go on to the same bits; ``kept`` has the final statistics, and ``packs`` carries
them from store to store. The use of C₀ is left to the editors.
"""

from continual.statistics.collecting import CollectingProgress
from continual.statistics.kept import OWN_TOKENS, KeyStatistics, Statistics, StatisticsError
from continual.statistics.packs import PackError
from continual.statistics.windows import Passes

__all__ = [
    "OWN_TOKENS",
    "CollectingProgress",
    "KeyStatistics",
    "PackError",
    "Passes",
    "Statistics",
    "StatisticsError",
]
