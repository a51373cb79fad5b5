"""The settings of T-Patcher that are tried on a base model: how wide its gates are."""

from __future__ import annotations

from continual.grids import Axis, Grid, Settings
from continual.site import Site

GATES: tuple[Settings, ...] = (
    {},
    {"subject_margin": 0.2},
    {"subject_margin": 0.5},
    {"subject_copies": 16},
)
"""Of neurons that ask for their subject: a lower margin is more general, copies make it so, too."""


def grid(site: Site) -> Grid:
    """One request after another, as they are applied. At half a billion parameters an edit takes
    half a minute on one core, and the defaults were chosen there: nobody waits for it unasked."""
    gate = Axis("gate", ("subject_margin", "subject_copies"), lambda _: GATES)
    return Grid((gate,), together=False, attempts=2, by_itself=False)
