"""The contract of editors: the context that they are given, and the proposal that they give.

An editor gets the model at head and a batch of edits, and proposes a patch; it writes nothing, and
takes back off the model whatever it tried. Knows no method: those are in `editors`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch

from continual.patches import Patch
from continual.prompts import Prompt
from continual.queries.memory import QueryMemory
from continual.requests import Request
from continual.site import Site
from continual.site.rows import Rows
from continual.statistics import Statistics
from continual.tasks import Encoding


@dataclass(frozen=True)
class Edit:
    """A request as an editor sees it: the prompt in its forms first, then the rephrases it may
    learn from."""

    request: Request
    encodings: tuple[Encoding, ...]
    rows: tuple[Rows, ...]  # of each encoding, at the last FFN
    forms: int = 1  # the first encodings, so many: each of them must come out right
    near: Rows | None = None  # of its neighbours in memory; None where nothing is watched
    wordings: tuple[Prompt, ...] = ()  # as others of its relation are asked: nobody gave them

    @cached_property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    def alone(self) -> Edit:
        """The same with the prompt only, in its forms."""
        return replace(self, encodings=self.encodings[: self.forms], rows=self.rows[: self.forms])


@dataclass(frozen=True)
class Taught:
    """What the model has been taught, for methods that hold on to it by asking it again."""

    training: tuple[Encoding, ...] = ()  # the training probes, all of them in their order
    contradicted: frozenset[int] = frozenset()  # of which an edit answers the question otherwise
    edits: Mapping[str, Encoding] = field(default_factory=dict)  # prompts of those in force
    general: tuple[tuple[int, ...], ...] = ()  # general texts in memory, as tokens


@dataclass(frozen=True)
class Surroundings:
    """What an editor works in."""

    site: Site
    memory: QueryMemory
    generator: torch.Generator  # seeded by the store's seed and the step's number
    attempt: int = 0  # 0 at first; each retry has a larger budget
    statistics: Statistics | None = None  # of the base model's keys
    seed: int = 0  # the store's: for what is drawn once and is the same at every step
    taught: Callable[[], Taught] = Taught
    naming: Callable[[Edit], QueryMemory] | None = None
    """The memory of a neuron that asks for an edit's subject; None where nothing is watched."""
    narrow: int = 0  # earlier proposals of these edits that changed too much of what is held out


@dataclass(frozen=True)
class Proposal:
    """What an editor makes of a batch: a patch for those that it could do, reasons for the rest."""

    patch: Patch | None
    failed: Mapping[str, str] = field(default_factory=dict)  # request id → reason
    notes: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # request id → what to show


class Editor(Protocol):
    """A method."""

    name: str
    attempts: int  # how many budgets it has
    tolerance: float  # the share of a batch that may stay wrong while the others keep the patch
    splits: bool  # whether a batch that it objects to may do in halves
    crowds: bool  # whether edits of a batch are in each other's way: one that failed may do alone
    narrows: bool  # whether a retry of an edit that changed too much is narrower: see `narrow`

    def edit(self, edits: Sequence[Edit], around: Surroundings) -> Proposal:
        """A patch for these edits, which together make one batch."""

    def objection(self, patch: Patch, edits: Sequence[Edit], around: Surroundings) -> str | None:
        """Why its patch for these edits, sound in itself, is too large to be put on, if it is."""
