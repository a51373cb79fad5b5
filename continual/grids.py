"""Grids: the settings of an editor that are worth trying on a base model, axis after axis.

An editor's registry entry names a function that gives its grid for a model. Knows the alternatives
and their order; leaves trials, measurements and the choice to `calibration`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from continual.patches import Patch
from continual.proposals import EditContext
from continual.requests import Request
from continual.site import Site
from continual.statistics import Statistics

MEASURED = ("arrives", "generalises", "general", "neighbours", "others")
"""The columns of evidence: the shares of facts and of their rewordings that are right, and of
positions of general text, neighbours of the facts and other facts that are as before."""

TriedSettings = Mapping[str, Any]
"""Lines of an `[editor.NAME]` table."""


@dataclass(frozen=True)
class GridAxis:
    """Settings that are chosen together.

    `choices` gets the settings chosen so far and returns the alternatives, the cheapest first: the
    first of nearly equal ones is chosen, or the best one if none is cheaper.
    """

    name: str
    settings: tuple[str, ...]
    choices: Callable[[TriedSettings], Sequence[TriedSettings]]
    is_by_cost: bool = True


@dataclass(frozen=True)
class Budget:
    """A bound on an editor's patches, set by the losses of general text and other facts.

    `spent` returns the amount that the model as it stands takes, in the units of the setting;
    `grown` returns a patch scaled by a factor.
    """

    setting: str
    unbounded: float  # a value that refuses nothing
    spent: Callable[[EditContext], float]
    grown: Callable[[Patch, float], Patch]


@dataclass(frozen=True)
class Grid:
    """The alternatives of one editor on one model, and the way to try them."""

    axes: tuple[GridAxis, ...]
    together: bool  # the facts are one batch; else one after another
    budget: Budget | None = None
    attempts: int = 1  # in each trial, for the facts that are still wrong
    takes: Callable[[Request], bool] = lambda request: True
    """Tells whether this editor can write a fact."""
    by_itself: bool = True  # at an editor's first use; else only on request
    measured: tuple[str, ...] = MEASURED
    """The columns of evidence that these settings may change; the others are not measured."""
    prepare: Callable[[Statistics], None] = lambda statistics: None
    """Collects all statistics that trials need in one go."""


GridOf = Callable[[Site], Grid]
"""The function that an editor's registry entry names: its grid for a model and its task."""
