"""The contract of editors: the context that they are given, and the proposal that they return.

An editor gets the model at head and a batch of edits, and proposes a patch; it writes nothing, and
takes everything that it tried off the model again. Knows no method; leaves these to `editors`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, Self, runtime_checkable

import torch

from continual.patches import Patch
from continual.prompts import Prompt
from continual.queries.memory import ProtectedQueries
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
    forms: int = 1  # the number of first encodings that must all come out right
    near: Rows | None = None  # of its neighbours in memory; None if nothing is watched
    quiet: tuple[Encoding, ...] = ()  # these neighbours, as questions
    wordings: tuple[Prompt, ...] = ()  # further ones, made from other requests of its relation

    @cached_property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    def alone(self) -> Edit:
        """Return the edit with its prompt only, in all its forms."""
        return replace(self, encodings=self.encodings[: self.forms], rows=self.rows[: self.forms])


@dataclass(frozen=True)
class KnownAnswers:
    """The answers that the model has been taught; methods that preserve them ask them again."""

    training: tuple[Encoding, ...] = ()  # all training probes, in their order
    contradicted: frozenset[int] = frozenset()  # places of those that an edit answers otherwise
    stating: frozenset[int] = frozenset()  # places of those that state a fact an edit corrects
    edits: Mapping[str, Encoding] = field(default_factory=dict)  # prompts of the edits in force
    general: tuple[tuple[int, ...], ...] = ()  # general texts in memory, as tokens


@runtime_checkable
class Findings(Protocol):
    """Things in `EditContext.kept` whose bits depend on the order in which they were found: trials
    in another process begin with a copy of them."""

    def copied(self) -> Self:
        """Return a copy that others may be added to."""

    def take_over(self, found: Self) -> None:
        """Add the findings of a trial that began with a copy of these."""


@dataclass(frozen=True)
class EditContext:
    """The context of an edit: model, protected queries, randomness, and earlier attempts."""

    site: Site
    memory: ProtectedQueries
    generator: torch.Generator  # seeded by the store's seed and the step's number
    attempt: int = 0  # 0 at first; each retry has a larger budget
    statistics: Statistics | None = None  # of the base model's keys
    seed: int = 0  # the store's, for draws that are the same at every step
    known_answers: Callable[[], KnownAnswers] = KnownAnswers
    naming: Callable[[Edit], ProtectedQueries] | None = None
    """Gives the memory of a neuron that asks for an edit's subject; None if nothing is watched."""
    narrow: int = 0  # earlier proposals of these edits that changed too many held-out probes
    kept: dict[str, Any] = field(default_factory=dict)
    """Findings that editors keep for their further proposals in this step, or in trials on the same
    model, by names of their own."""


@dataclass(frozen=True)
class Proposal:
    """An editor's result for a batch: a patch for the edits that it made, reasons for the rest."""

    patch: Patch | None
    failed: Mapping[str, str] = field(default_factory=dict)  # request id → reason
    notes: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # request id → notes to show


class Editor(Protocol):
    """A method of editing."""

    name: str
    attempts: int  # the number of its budgets
    tolerance: float  # the share of a batch that may stay wrong while the others keep the patch
    splits: bool  # True: a batch that it objects to may fit in halves
    crowds: bool  # True: edits of a batch hinder each other, so that a failed one may work alone
    narrows: bool  # True: a retry of an edit that changed too much is narrower; see `narrow`

    def edit(self, edits: Sequence[Edit], context: EditContext) -> Proposal:
        """Propose a patch for these edits, which together are one batch."""

    def objection(self, patch: Patch, edits: Sequence[Edit], context: EditContext) -> str | None:
        """Say why its patch for these edits, sound in itself, is over the budget; None if it is
        not."""
