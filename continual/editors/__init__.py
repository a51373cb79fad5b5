"""The editors: methods that turn requests into a patch. One folder per method, one line here.

An editor gets the model at head and a batch of edits, and proposes a patch; it writes nothing, and
takes back off the model whatever it tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch

from continual.errors import CeditError
from continual.patches import Patch
from continual.query_memory import QueryMemory
from continual.requests import Request
from continual.site import Rows, Site
from continual.statistics import Statistics
from continual.tasks import Encoding

DEFAULT_CHAIN = ("tpatcher",)
"""The editors that a request goes through, until one of them gets it right."""


@dataclass(frozen=True)
class Edit:
    """A request as an editor sees it: the prompt first, then the rephrases it may learn from."""

    request: Request
    encodings: tuple[Encoding, ...]
    rows: tuple[Rows, ...]  # of each encoding, at the last FFN

    @cached_property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    def alone(self) -> Edit:
        """The same with the prompt only."""
        return replace(self, encodings=self.encodings[:1], rows=self.rows[:1])


@dataclass(frozen=True)
class Surroundings:
    """What an editor works in."""

    site: Site
    memory: QueryMemory
    generator: torch.Generator  # seeded by the store's seed and the step's number
    attempt: int = 0  # 0 at first; each retry has a larger budget
    statistics: Statistics | None = None  # of the base model's keys


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

    def edit(self, edits: Sequence[Edit], around: Surroundings) -> Proposal:
        """A patch for these edits, which together make one batch."""

    def objection(self, patch: Patch, edits: Sequence[Edit], around: Surroundings) -> str | None:
        """Why its patch for these edits, sound in itself, is too large to be put on, if it is."""


def _tpatcher(settings: Mapping[str, Any]) -> Editor:
    from continual.editors.tpatcher import TPatcher, TPatcherConfig

    return TPatcher(TPatcherConfig.of(settings))


def _memit(settings: Mapping[str, Any]) -> Editor:
    from continual.editors.memit import Memit, MemitConfig

    return Memit(MemitConfig.of(settings))


def _rome(settings: Mapping[str, Any]) -> Editor:
    from continual.editors.rome import Rome, RomeConfig

    return Rome(RomeConfig.of(settings))


def _emmet(settings: Mapping[str, Any]) -> Editor:
    from continual.editors.emmet import Emmet, EmmetConfig

    return Emmet(EmmetConfig.of(settings))


def _alphaedit(settings: Mapping[str, Any]) -> Editor:
    from continual.editors.alphaedit import AlphaEdit, AlphaEditConfig

    return AlphaEdit(AlphaEditConfig.of(settings))


EDITORS: Mapping[str, Callable[[Mapping[str, Any]], Editor]] = {
    "tpatcher": _tpatcher,
    "memit": _memit,
    "rome": _rome,
    "emmet": _emmet,
    "alphaedit": _alphaedit,
}

CHOICES: Mapping[str, tuple[str, ...]] = {"auto": ("memit", "tpatcher")}
"""Chains by name. `auto`: what has its subject in the prompt to MEMIT, the rest to T-Patcher."""


def chain_of(text: str) -> tuple[str, ...]:
    """The editors that `a`, `a,b` or a choice names. Raises CeditError for none, or an unknown."""
    named = [name.strip() for name in text.split(",") if name.strip()]
    chain = dict.fromkeys(editor for name in named for editor in CHOICES.get(name, (name,)))
    if not chain:
        raise CeditError("Name at least one editor.")
    for name in chain:
        _require(name)
    return tuple(chain)


def make_editor(name: str, settings: Mapping[str, Any]) -> Editor:
    """The editor of this name, set up from its `[editor.NAME]` table."""
    _require(name)
    return EDITORS[name](settings)


def _require(name: str) -> None:
    if name not in EDITORS:
        known = ", ".join([*EDITORS, *CHOICES])
        raise CeditError(f"Unknown editor {name!r}: choose one of {known}.")
