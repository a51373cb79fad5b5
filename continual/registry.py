"""Registries: names to choose from, the engine's own and the names that other packages add.

An entry has a name, a summary, and the path of an object that is imported when it is asked for, so
that listing a registry does not import torch. Other packages add entries by entry points, in the
groups `cedit.editors`, `cedit.readers` and `cedit.tasks`. Leaves the engine's own entries to
`choices`.
"""

from __future__ import annotations

import pkgutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from continual.errors import CeditError, PluginError, PluginWarning

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


@dataclass(frozen=True)
class RegistryEntry:
    """A name, and the object that it stands for."""

    kind: ClassVar[str]
    offers: ClassVar[tuple[str, ...]]
    """The attributes of every such object, the one with its name first."""

    name: str
    path: str  # MODULE:ATTRIBUTE, or a MODULE alone
    summary: str  # one line, as help and documentation show it
    package: str = field(default="", kw_only=True)  # that adds the entry; empty: the engine

    def load(self) -> Any:
        """Import the object. Raises PluginError if it fails or does not fit."""
        loaded = self._imported(self.path)
        if missing := [name for name in self.offers if not hasattr(loaded, name)]:
            raise self.refused(f"{self.path} has no {', '.join(missing)}")
        if (name := getattr(loaded, self.offers[0])) != self.name:
            raise self.refused(f"{self.path} says that its name is {name}")
        return loaded

    def refused(self, cause: str) -> PluginError:
        """Return the error for an entry that cannot be used."""
        return PluginError(self.kind, self.name, self.package, cause)

    def _imported(self, path: str) -> Any:
        try:
            return pkgutil.resolve_name(path)
        except Exception as error:
            if not self.package:
                raise
            raise self.refused(_told(error)) from error


@dataclass(frozen=True)
class EditorEntry(RegistryEntry):
    """A method: a class with `name`, `edit` and the rest of `Editor`, made from its settings."""

    kind: ClassVar[str] = "editor"
    offers: ClassVar[tuple[str, ...]] = ("name", "edit", "objection")

    tasks: tuple[str, ...] = ()  # whose models it edits; none named: any
    config: str = ""  # the path of its settings, a `Table`; empty: `…Config` beside the class
    grid: str = ""  # the path of a `GridOf`: settings to try on a base model; empty: none
    sees: bool = True  # an editor of causal models edits those of them that see pictures, too

    def edits(self, task: str) -> bool:
        """Tell whether it edits the models of a task."""
        if task in LIKE and not self.sees:
            return False
        return not self.tasks or task in self.tasks or LIKE.get(task) in self.tasks

    def load_config(self) -> Any:
        """Import the class of its settings. Raises PluginError, as `load` does."""
        return self._imported(self.config or f"{self.path}Config")

    def load_grid(self) -> Any:
        """Import the function that gives its grid for a model; None for an editor without one.
        Raises PluginError, as `load` does."""
        return self._imported(self.grid) if self.grid else None


@dataclass(frozen=True)
class ReaderEntry(RegistryEntry):
    """A format of corrections: a module, or another object, with the attributes of `Format`."""

    kind: ClassVar[str] = "reader"
    offers: ClassVar[tuple[str, ...]] = ("NAME", "recognises", "read")


@dataclass(frozen=True)
class TaskEntry(RegistryEntry):
    """A way to turn requests into tokens: a class with the attributes of `Task`."""

    kind: ClassVar[str] = "task"
    offers: ClassVar[tuple[str, ...]] = ("name", "architecture", "of", "encode", "answer")


LIKE: Mapping[str, str] = {"multimodal": "causal"}
"""Tasks by those whose editors they take: a decoder that sees is a decoder."""

E = TypeVar("E", bound=RegistryEntry)


class Registry(Mapping[str, E]):
    """Entries of one kind by name: the engine's own first, then the entries of other packages.

    Raises PluginError for an entry of another package that cannot be read; an entry whose name is
    taken is left out with a warning.
    """

    def __init__(self, kind: type[E], *entries: E, reserved: tuple[str, ...] = ()) -> None:
        self._kind = kind
        self._own = {entry.name: entry for entry in entries}
        self._reserved = reserved  # names of other things that are chosen in the same place

    def __getitem__(self, name: str) -> E:
        points = self._points  # also for our own names, so that one taken twice is warned of
        return self._own[name] if name in self._own else self._read(points[name])

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._points

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self._points

    def __len__(self) -> int:
        return len(self._own) + len(self._points)

    def add(self, entry: E) -> None:
        """Add an entry of the program that runs, for as long as it runs. Raises CeditError if the
        name is taken."""
        if entry.name in self or entry.name in self._reserved:
            raise CeditError(
                f"The {entry.kind} {entry.name} cannot be added: the name is taken. Choose another."
            )
        self._own[entry.name] = entry
        for lists in ("summaries", "objects"):
            self.__dict__.pop(lists, None)

    @property
    def own(self) -> tuple[E, ...]:
        """The engine's own entries."""
        return tuple(self._own.values())

    @cached_property
    def summaries(self) -> Mapping[str, str]:
        """A line for each name; if another package's entry cannot be read, the line is the
        reason."""
        lines = {}
        for name in self:
            try:
                lines[name] = self[name].summary
            except PluginError as error:
                lines[name] = str(error)
        return lines

    @cached_property
    def objects(self) -> tuple[Any, ...]:
        """All objects that the names stand for. Another package's that fails is left out with a
        warning."""
        loaded = []
        for name in self:
            try:
                loaded.append(self[name].load())
            except PluginError as error:
                _warn(error)
        return tuple(loaded)

    @cached_property
    def _points(self) -> Mapping[str, EntryPoint]:
        """The entry points of other packages by name."""
        from importlib.metadata import entry_points

        points: dict[str, EntryPoint] = {}
        names = {*self._own, *self._reserved}
        for point in sorted(entry_points(group=f"cedit.{self._kind.kind}s"), key=_package):
            if point.name in names:
                _warn(self._refused(point, "the name is taken"))
            else:
                points[point.name] = point
                names.add(point.name)
        return points

    def _read(self, point: EntryPoint) -> E:
        """Read the entry of an entry point. Raises PluginError."""
        try:
            entry = point.load()
        except Exception as error:
            raise self._refused(point, _told(error)) from error
        if not isinstance(entry, self._kind):
            expected = self._kind.__name__
            raise self._refused(point, f"{point.value} is {entry!r:.40}, and not an {expected}")
        if entry.name != point.name:
            raise self._refused(point, f"{point.value} says that its name is {entry.name}")
        return replace(entry, package=_package(point))

    def _refused(self, point: EntryPoint, cause: str) -> PluginError:
        return PluginError(self._kind.kind, point.name, _package(point), cause)


def _package(point: EntryPoint) -> str:
    """Return the distribution of an entry point."""
    return point.dist.name if point.dist else point.module


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _warn(error: PluginError) -> None:
    warnings.warn(PluginWarning(str(error)), stacklevel=3)
