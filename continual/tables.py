"""Settings that are read from a table of the store's `cedit.toml`.

Knows how a table becomes a frozen dataclass, or an error that names the table and the key. What the
keys mean, and what values they may have, is each class's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from continual.errors import CeditError


@dataclass(frozen=True)
class Table:
    """A table with its defaults. A subclass is a frozen dataclass too, and names its `table`."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)
    table: ClassVar[str]
    new_stores: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """By task, the settings that a new store writes down. The defaults stay as older stores, which
    say nothing of them, have them."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """From the table as it was read. Raises CeditError for a key that it does not have, or a
        value of another type."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(settings) - known):
            raise CeditError(
                f"[{cls.table}] has no setting {', '.join(unknown)}: it has "
                f"{', '.join(sorted(known))}."
            )
        try:
            return TypeAdapter(cls).validate_python(dict(settings))
        except ValidationError as error:
            raise cls.refused(_told(error)) from None

    @classmethod
    def refused(cls, reason: str) -> CeditError:
        """The error for settings that do not do."""
        return CeditError(f"[{cls.table}] {reason}.")


def _told(error: ValidationError) -> str:
    """Which keys are wrong, and how."""
    return "; ".join(map(_problem, error.errors(include_url=False, include_context=False)))


def _problem(found: ErrorDetails) -> str:
    key = ".".join(map(str, found["loc"]))
    if found["type"] == "missing":
        return f"{key} is missing"
    return f"{key} = {found['input']!r}: {found['msg'].lower()}"
