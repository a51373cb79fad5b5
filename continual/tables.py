"""Reads settings from a table of the store's `cedit.toml`.

Turns a table into a frozen dataclass, or into an error that names the table and the key. Leaves the
meaning of the keys, and their allowed values, to each class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from continual.errors import CeditError


@dataclass(frozen=True)
class SettingsTable:
    """A table with its defaults. A subclass is a frozen dataclass too, and names its `table`."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)
    table: ClassVar[str]
    new_stores: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """By task, the settings that a new store writes down. The defaults stay as they are, because
    older stores without these settings rely on them."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Make the settings from the table as it was read. Raises CeditError for an unknown key,
        and for a value of another type."""
        names = {field.name for field in fields(cls)}
        if unknown := sorted(set(settings) - names):
            raise CeditError(
                f"[{cls.table}] has no setting {', '.join(unknown)}: it has "
                f"{', '.join(sorted(names))}."
            )
        try:
            return TypeAdapter(cls).validate_python(dict(settings))
        except ValidationError as error:
            raise cls.refused(_told(error)) from None

    @classmethod
    def refused(cls, reason: str) -> CeditError:
        """Return the error for settings that break a rule."""
        return CeditError(f"[{cls.table}] {reason}.")


def _told(error: ValidationError) -> str:
    """Name the wrong keys, and the problem with each."""
    return "; ".join(map(_problem, error.errors(include_url=False, include_context=False)))


def _problem(found: ErrorDetails) -> str:
    key = ".".join(map(str, found["loc"]))
    if found["type"] == "missing":
        return f"{key} is missing"
    return f"{key} = {found['input']!r}: {found['msg'].lower()}"
