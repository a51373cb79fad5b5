"""The settings of AlphaEdit that are tried on a base model."""

from __future__ import annotations

from continual.grids import Grid, GridAxis
from continual.locate_then_edit.grid import grid_of, weight_axis
from continual.site import Site

WEIGHTS = (0.15, 0.6, 0.0375)  # λ/d_ff of the weighted form
FORMS = GridAxis("form", ("form",), lambda _: [{}, {"form": "weighted"}, {"form": "projected"}])


def grid(site: Site) -> Grid:
    """Return the grid of the place, the reach, the form, and λ."""
    return grid_of(site.edited.anatomy, FORMS, weight_axis(site.edited.anatomy, WEIGHTS))
