"""The settings of T-Patcher that are tried on a base model: the width of its gates."""

from __future__ import annotations

from continual.grids import Grid, GridAxis, TriedSettings
from continual.site import Site

GATES: tuple[TriedSettings, ...] = (
    {},
    {"subject_margin": 0.2},
    {"subject_margin": 0.5},
    {"subject_copies": 16},
)
"""Settings of neurons that ask for their subject: a lower margin, or copies, make them more
general."""


def grid(site: Site) -> Grid:
    """Return the grid of the gates, which tries one request after another, as they are applied. At
    half a billion parameters an edit takes half a minute on one core, and the defaults were chosen
    there: so it runs only when asked for."""
    gate = GridAxis("gate", ("subject_margin", "subject_copies"), lambda _: GATES)
    return Grid((gate,), together=False, attempts=2, by_itself=False)
