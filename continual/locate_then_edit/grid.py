"""The settings of locate-then-edit methods to try: the place, the reach and the weight of an
update.

The block and the token where a value changes the answer, the length that a value needs, and the
drift that a matrix's output can bear differ from model to model, and can only be measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from continual.anatomy import Anatomy
from continual.grids import Budget, Grid, GridAxis, TriedSettings
from continual.locate_then_edit.config import default_blocks
from continual.locate_then_edit.drift import drift_of
from continual.patches import Patch
from continual.patches.low_rank import Factors, LowRankPatch
from continual.proposals import EditContext
from continual.requests import Request

BLOCKS_TRIED = 6
"""Blocks that are tried one by one; a deeper model's are at equal distances."""
REACHES: tuple[TriedSettings, ...] = (
    {"clamp_norm_factor": 0.75},
    {"clamp_norm_factor": 1.5},
    {"clamp_norm_factor": 3.0},
    {"clamp_norm_factor": 3.0, "steps_max": 80},
)
"""Settings of the search with longer values and more steps."""
PLACES = ("subject", "answer")
OVERSHOOTS = (1.0, 1.4, 2.0)
GENERAL_WEIGHTS = (0.0, 6.0, 20.0)
GENEROUS: TriedSettings = {"clamp_norm_factor": 1.5, "overshoot": 1.4, "general_weight": 6.0}
"""Settings that sites are tried with, so that none is left out for want of reach, which is chosen
behind them."""
SPREADS = (2, 3)  # blocks that share an update, if one is not enough
WEIGHTS = (0.05, 0.2, 0.0125, 0.003)  # λ/d_ff
UNBOUNDED = 1e9


def grid_of(
    anatomy: Anatomy,
    *more: GridAxis,
    places: Sequence[str] = PLACES,
    spreads: Sequence[int] = SPREADS,
) -> Grid:
    """Make the grid of a method of the family; `more` are its own axes."""
    sites = GridAxis(
        "block and place",
        ("blocks", "place"),
        lambda _: _sites(anatomy, places),
        is_by_cost=False,
    )
    reach = GridAxis("reach", ("clamp_norm_factor", "steps_max"), lambda _: REACHES)
    overshoots = [{"overshoot": times} for times in OVERSHOOTS]
    length = GridAxis("length of the values", ("overshoot",), lambda _: overshoots)
    weights = [{"general_weight": weight} for weight in GENERAL_WEIGHTS]
    general = GridAxis(
        "weight of general text", ("general_weight",), lambda _: weights, is_by_cost=False
    )
    breadth = GridAxis("more blocks", ("blocks",), lambda chosen: _spread(chosen, spreads))
    axes = (sites, reach, length, general, *more, *([breadth] if spreads else []))
    blocks = _blocks(anatomy.block_count)
    return Grid(
        axes,
        together=True,
        budget=DRIFT,
        takes=_names_its_subject,
        prepare=lambda statistics: statistics.require(blocks),
    )


def weight_axis(anatomy: Anatomy, shares: Sequence[float] = WEIGHTS) -> GridAxis:
    """Make the axis of λ, in shares of d_ff."""
    choices = [{"moment_weight": share * anatomy.ffn_width} for share in shares]
    return GridAxis("weight of the statistics", ("moment_weight",), lambda _: choices)


def _sites(anatomy: Anatomy, places: Sequence[str]) -> list[TriedSettings]:
    """Return each block at each place; the default block, by depth, comes first."""
    blocks = _blocks(anatomy.block_count)
    return [{**GENEROUS, "blocks": [block], "place": place} for place in places for block in blocks]


def _blocks(count: int) -> list[int]:
    """Return the blocks to try of `count`: the default, and all, or some at equal distances."""
    size = min(count, BLOCKS_TRIED)
    grid_blocks = [round(i * (count - 1) / max(1, size - 1)) for i in range(size)]
    return list(dict.fromkeys([default_blocks(count)[-1], *grid_blocks]))


def _spread(chosen: TriedSettings, sizes: Sequence[int]) -> list[TriedSettings]:
    """Return the last chosen block alone, and with the blocks before it."""
    last_block = chosen["blocks"][-1]
    spans = [list(range(max(0, last_block - size + 1), last_block + 1)) for size in (1, *sizes)]
    return [{"blocks": span} for i, span in enumerate(spans) if span not in spans[:i]]


def _names_its_subject(request: Request) -> bool:
    return bool(request.subject) and str(request.subject) in str(request.prompt)


# -- the drift budget


def _spent(context: EditContext) -> float:
    """Return the largest drift of a block as the model stands; see `drift_of`."""
    assert context.statistics is not None
    edited = context.site.edited
    drifts = [0.0]
    for block in edited.reach.blocks:
        weight = edited.weight(block)
        base = weight.base.float()
        moment = context.statistics.get(block).second_moment.to(base)
        drifts.append(drift_of(base, weight.change, moment))
    return max(drifts)


def _grown(patch: Patch, times: float) -> Patch:
    """Return the patch with its ΔW `times` as large."""
    assert isinstance(patch, LowRankPatch)
    factors = {b: Factors(f.left, f.right * times) for b, f in patch.factors.items()}
    return replace(patch, factors=factors)


DRIFT = Budget("drift_max", UNBOUNDED, _spent, _grown)
