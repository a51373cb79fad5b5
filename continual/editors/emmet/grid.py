"""The settings of EMMET that are tried on a base model."""

from __future__ import annotations

from continual.grids import Grid, GridAxis
from continual.locate_then_edit.grid import grid_of
from continual.site import Site

RIDGES = GridAxis("ridge", ("ridge",), lambda _: [{}, {"ridge": 1.0}, {"ridge": 10.0}])


def grid(site: Site) -> Grid:
    """Return the grid of the place, the reach, and the ridge."""
    return grid_of(site.edited.anatomy, RIDGES)
