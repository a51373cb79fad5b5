"""The formats in which corrections are found, each ending in ``Request``.

A format is a module with a ``NAME``, ``recognises(record)``, which looks at the keys, and
``read(record)``, which gives the requests or raises ``RequestError``. Adding one is its file and
its line in ``choices.READERS``.

Two rules hold for all: the paraphrases of evaluation datasets are held out, as they are there to
measure; and a probe whose answer the source leaves empty is left out, as it measures nothing,
while an edit without a target is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pydantic import ValidationError

from continual.choices import READERS
from continual.errors import RequestError
from continual.readers import plain
from continual.requests import Request, explain, named

KEYS_NAMED_MAX = 12  # keys of an unknown record that the message repeats


class Format(Protocol):
    """A module of this package, or an object that another package adds."""

    NAME: str

    def recognises(self, record: Mapping[str, object]) -> bool:
        """Whether the record's keys are this format's."""

    def read(self, record: Mapping[str, object]) -> list[Request]:
        """The requests in the record; raises ``RequestError``."""


def formats() -> list[Format]:
    """All formats in the order in which they are asked: cedit's own last, as it is the strictest,
    and before it those that other packages add."""
    return sorted(READERS.objects, key=lambda format_: format_ is plain)


def read_record(record: Mapping[str, object]) -> list[Request]:
    """The requests in a record, by the first format that recognises it.

    Raises ``RequestError`` with the format and the key at fault, or with the keys found and the
    formats known.
    """
    for format_ in formats():
        if format_.recognises(record):
            return _read(format_, record)
    raise RequestError(_unknown(record))


def _read(format_: Format, record: Mapping[str, object]) -> list[Request]:
    try:
        return format_.read(record)
    except ValidationError as error:
        raise RequestError(f"{format_.NAME}: {explain(error)}") from None
    except RequestError as error:
        raise RequestError(f"{format_.NAME}: {error.reason}") from None


def _unknown(record: Mapping[str, object]) -> str:
    shown = [named(key) for key in sorted(record)[:KEYS_NAMED_MAX]]
    more = [f"and {len(record) - len(shown)} more"] if len(record) > len(shown) else []
    keys = ", ".join([*shown, *more]) or "none"
    names = ", ".join(format_.NAME for format_ in formats())
    return f"no known format has these keys: {keys}; the formats are {names}"
