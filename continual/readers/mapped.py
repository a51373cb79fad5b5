"""Reads records by a person's own map from cedit's keys to theirs.

Knows paths into a record (``fact.qas.0.answer``). The rest of the record is kept as ``extra``.
"""

from __future__ import annotations

from collections.abc import Mapping

from continual.errors import CeditError, RequestError
from continual.requests import OWN_KEYS, named

REQUIRED = "target_new"
_ONE_TEXT = frozenset({"target_new", "target_old"})


def checked(keys: Mapping[str, str]) -> dict[str, str]:
    """Return the keys, checked. Raises CeditError for a key that is not cedit's own."""
    for key, path in keys.items():
        if key not in OWN_KEYS or not path:
            raise CeditError(
                f"{key}={path} names no key of a correction: those are {', '.join(OWN_KEYS)}, each "
                "with a key of the record behind it, as in prompt=question,target_new=answer"
            )
    return dict(keys)


def fits(record: Mapping[str, object], keys: Mapping[str, str]) -> bool:
    """Tell whether the record has a prompt and a target under the keys that are named for them, or
    under cedit's own."""
    prompts = [keys.get(name, name) for name in ("prompt", "messages")]
    target = keys.get(REQUIRED, REQUIRED)
    return _has(record, target) and any(_has(record, prompt) for prompt in prompts)


def renamed(record: Mapping[str, object], keys: Mapping[str, str]) -> dict[str, object]:
    """Return the record in cedit's own keys, with its other fields under their keys. Raises
    RequestError for an empty list in the target's place."""
    roots = {_root(record, path) for path in keys.values()}
    cedit_fields = {name: _first(name, _at(record, path)) for name, path in keys.items()}
    extras = {key: value for key, value in record.items() if key not in roots and key not in keys}
    return {**extras, **{name: value for name, value in cedit_fields.items() if value is not None}}


def _first(name: str, value: object) -> object:
    """Return the first of several equally good targets; any other value as it is."""
    while name in _ONE_TEXT and isinstance(value, list):
        if not value:
            raise RequestError(f"the list for {named(name)} is empty")
        value = value[0]
    return value


def _has(record: Mapping[str, object], path: str) -> bool:
    return _at(record, path) is not None


def _root(record: Mapping[str, object], path: str) -> str:
    return path if path in record else path.partition(".")[0]


def _at(record: Mapping[str, object], path: str) -> object:
    """Return the value under a key, or at the end of a path; None if there is none."""
    if path in record:
        return record[path]
    value: object = record
    for step in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value
