"""Key statistics: C₀ = E[k kᵀ] of the key activations of a block, over text, on the bare base.

A key is the input of a block's ``down`` matrix at one token of a text, padding left out. ROME
(Meng et al. 2022, equation 2) and MEMIT (Meng et al. 2023, equations 14 and 15) weigh by C₀ what
an edit may do to everything else.

``texts`` says what a text is, ``windows`` how it is cut, ``moments`` how keys are summed, and
``collecting`` how a run that was killed goes on to the same bits; ``kept`` is what there is in the
end. What becomes of C₀ is left to the editors.
"""

from continual.statistics.collecting import Progress
from continual.statistics.kept import OWN_TOKENS, KeyStatistics, Statistics, StatisticsError
from continual.statistics.windows import Passes

__all__ = [
    "OWN_TOKENS",
    "KeyStatistics",
    "Passes",
    "Progress",
    "Statistics",
    "StatisticsError",
]
