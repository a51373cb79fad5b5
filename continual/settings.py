"""Reads a store's `cedit.toml`. People may change it, so it is checked as input.

Knows the names of all tables, and the keys of the tables of the model, of a run and of streams.
Leaves the tables of a task, an editor, the memory or the server to the modules that use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from continual.errors import CeditError
from continual.tables import SettingsTable

DEFAULT_TASK = "causal"
TABLES = (
    *("model", "task", "anatomy", "run", "probes"),
    *("editor", "memory", "watch", "stream", "calibration", "server"),
)


@dataclass(frozen=True)
class ModelSettings(SettingsTable):
    """The `[model]` table: the base model, and the way to load it."""

    table: ClassVar[str] = "model"

    path: str  # the base model's directory; atlas: the embedded model
    fingerprint: str = ""  # SHA-256 of the base model: a directory with other weights is refused
    device: str = "cpu"  # where the model runs: cpu, cuda, mps, …
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The number format in which the weights are loaded."""
    device_map: tuple[str, ...] = ()
    """"MODULE DEVICE" of each part of a model on several devices or on the disk; or auto, balanced,
    balanced_low_0 or sequential: accelerate chooses. Empty: all of it is on `device`."""
    companions: tuple[str, ...] | None = None
    """"NAME SHA-256" of each file beside the weights that the fingerprint leaves out. A store
    without the list is an older one: no such files are compared."""


@dataclass(frozen=True)
class RunSettings(SettingsTable):
    """The `[run]` table."""

    table: ClassVar[str] = "run"

    seed: int = 0  # the seed of every random choice in the store


@dataclass(frozen=True)
class StreamSettings(SettingsTable):
    """The `[stream]` table: the largest sizes of records, and the map of their keys."""

    table: ClassVar[str] = "stream"

    line_bytes_max: int = 1_000_000
    array_bytes_max: int = 256_000_000
    keys: Mapping[str, str] = field(default_factory=dict)  # [stream.keys]: cedit's = the record's

    def __post_init__(self) -> None:
        for name in ("line_bytes_max", "array_bytes_max"):
            if getattr(self, name) < 1:
                raise self.refused(f"{name} = {getattr(self, name)}: it is a number from 1 on")


@dataclass(frozen=True)
class StoreSettings:
    """All tables of a store."""

    model: ModelSettings
    run: RunSettings
    task: Mapping[str, Any]
    anatomy: Mapping[str, Any]
    memory: Mapping[str, Any]
    editors: Mapping[str, Mapping[str, Any]]  # [editor.NAME]
    watch: Mapping[str, Any]
    calibration: Mapping[str, Any]
    server: Mapping[str, Any] = field(default_factory=dict)
    stream: StreamSettings = field(default_factory=StreamSettings)

    @property
    def task_name(self) -> str:
        """The name of the task, or of the default task."""
        return str(self.task.get("name", DEFAULT_TASK))

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Make the settings from the file as it was read. Raises CeditError for an unknown table,
        for a value in the place of a table, and for wrong values, as `SettingsTable.of` does."""
        if unknown := sorted(set(settings) - set(TABLES)):
            raise CeditError(
                f"cedit.toml says {', '.join(unknown)}, which nothing reads: its tables are "
                f"{', '.join(TABLES)}."
            )
        editors = _table(settings, "editor")
        return cls(
            ModelSettings.of(_table(settings, "model")),
            RunSettings.of(_table(settings, "run")),
            _table(settings, "task"),
            _table(settings, "anatomy"),
            _table(settings, "memory"),
            {name: _table(editors, name, "editor.") for name in editors},
            _table(settings, "watch"),
            _table(settings, "calibration"),
            _table(settings, "server"),
            StreamSettings.of(_table(settings, "stream")),
        )


def _table(settings: Mapping[str, Any], name: str, above: str = "") -> Mapping[str, Any]:
    """Return a table; empty if there is none. Raises CeditError for any other value."""
    table = settings.get(name, {})
    if not isinstance(table, Mapping):
        place = f"{above}{name}"
        raise CeditError(f"cedit.toml: {place} = {table!r} is no table: write [{place}].")
    return table
