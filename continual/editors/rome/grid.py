"""The settings of ROME that are tried on a base model."""

from __future__ import annotations

from continual.grids import Grid
from continual.locate_then_edit.grid import grid_of
from continual.site import Site


def grid(site: Site) -> Grid:
    """Return the grid of the place and the reach: ROME edits one block."""
    return grid_of(site.edited.anatomy, places=("subject", "end"), spreads=())
