"""The settings of MEMIT that are tried on a base model."""

from __future__ import annotations

from continual.grids import Grid
from continual.locate_then_edit.grid import grid_of, weight_axis
from continual.site import Site


def grid(site: Site) -> Grid:
    """Return the grid of the place, the reach, and λ."""
    return grid_of(site.edited.anatomy, weight_axis(site.edited.anatomy))
