"""Grids: the settings of an editor that are worth trying on a base model, axis after axis.

An editor's registry entry names a function that gives its grid for a model. Knows what is tried and
in which order; how it is tried, measured and chosen is left to `calibration`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from continual.patches import Patch
from continual.proposals import Surroundings
from continual.requests import Request
from continual.site import Site
from continual.statistics import Statistics

MEASURED = ("arrives", "generalises", "general", "neighbours", "others")
"""The columns of evidence: facts, and rewordings of them, that are right; positions of general
text, neighbours of the facts and other facts that are as before."""

Settings = Mapping[str, Any]
"""Lines of an `[editor.NAME]` table."""


@dataclass(frozen=True)
class Axis:
    """Settings that are chosen together.

    `choices` gets the settings chosen so far and gives the alternatives, the cheapest first: of
    those that do equally well the first is taken.
    """

    name: str
    settings: tuple[str, ...]
    choices: Callable[[Settings], Sequence[Settings]]


@dataclass(frozen=True)
class Budget:
    """A bound on an editor's patches, which is set by what general text and other facts lose.

    `spent` says how much of it the model as it stands takes, `grown` makes a patch so many times as
    large.
    """

    setting: str
    unbounded: float  # a value that refuses nothing
    spent: Callable[[Surroundings], float]
    grown: Callable[[Patch, float], Patch]


@dataclass(frozen=True)
class Grid:
    """All that is tried of one editor."""

    axes: tuple[Axis, ...]
    together: bool  # the facts are one batch; else one after another
    budget: Budget | None = None
    attempts: int = 1  # of a trial for the facts that are still wrong
    takes: Callable[[Request], bool] = lambda request: True
    """Whether a fact is one for this editor."""
    by_itself: bool = True  # at an editor's first use; else where it is asked for
    measured: tuple[str, ...] = MEASURED
    """The columns of evidence that these settings may change; the others are not measured."""
    prepare: Callable[[Statistics], None] = lambda statistics: None
    """Have all statistics that trials need, in one go."""


GridOf = Callable[[Site], Grid]
"""The function that an editor's registry entry names: its grid for a model and its task."""
