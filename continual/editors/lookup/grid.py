"""The settings of the look-up that are tried on a base model: its place, reach and width."""

from __future__ import annotations

from continual.grids import Grid, GridAxis, TriedSettings
from continual.locate_then_edit.grid import REACHES
from continual.site import Site

BLOCKS_TRIED = 5
"""Blocks that are tried one by one; a deeper model's are at equal distances."""
KEYS = GridAxis("key", ("key",), lambda _: [{}, {"key": "ffn"}])
MARGINS: tuple[TriedSettings, ...] = (
    {},
    {"margin": 0.5, "margin_min": 0.25},
    {"margin": 0.25, "margin_min": 0.1},
    {"margin": 0.9, "margin_min": 0.75},
)
"""Wider and narrower gates."""


def grid(site: Site) -> Grid:
    """Return the grid, which tries one request after another, each with its neighbours. It runs
    only when asked for, as it takes some fifteen trials."""
    sites = GridAxis("block and place", ("block", "place"), lambda _: _sites(site))
    reach = GridAxis("reach", ("clamp_norm_factor", "steps_max"), lambda _: REACHES)
    margin = GridAxis("margin", ("margin", "margin_min"), lambda _: MARGINS)
    return Grid((sites, KEYS, reach, margin), together=False, attempts=2, by_itself=False)


def _sites(site: Site) -> list[TriedSettings]:
    """Return each block below the last at each place; the default block comes first."""
    last = site.edited.anatomy.last
    count = min(last, BLOCKS_TRIED)
    spread = [round(i * (last - 1) / max(1, count - 1)) for i in range(count)]
    middle = min(round(0.5 * last), last - 1)
    blocks = list(dict.fromkeys([middle, *spread]))
    return [{"block": block, "place": place} for place in ("subject", "end") for block in blocks]
