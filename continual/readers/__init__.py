"""The formats of corrections, each read into ``Request``.

A format is a module with a ``NAME``, ``recognises(record)``, which looks at the keys, and
``read(record)``, which gives the requests or raises ``RequestError``. It may name ``LEFT_OUT``,
keys that its data set has and no request needs. A new format takes its file and its line in
``choices.READERS``.

Three rules hold for all: the paraphrases of evaluation datasets are held out, as they are there to
measure; a probe whose answer the source leaves empty is left out, as it measures nothing, while an
edit without a target is refused; and a key that its format does not read is kept with the request,
as ``extra``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pydantic import ValidationError

from continual.choices import READERS
from continual.errors import RequestError
from continual.readers import mapped, plain
from continual.readers.unread import Marked, kept
from continual.requests import Request, explain, named

KEYS_NAMED_MAX = 12  # keys of an unknown record that the message repeats


class Format(Protocol):
    """A module of this package, or an object that another package adds."""

    NAME: str

    def recognises(self, record: Mapping[str, object]) -> bool:
        """Tell whether the record's keys are this format's."""

    def read(self, record: Mapping[str, object]) -> list[Request]:
        """Return the requests in the record. Raises ``RequestError``."""


def formats() -> list[Format]:
    """Return all formats in the order in which they are asked: cedit's own last, as it is the
    strictest, and before it the formats that other packages add."""
    return sorted(READERS.objects, key=lambda format_: format_ is plain)


def read_record(
    record: Mapping[str, object], keys: Mapping[str, str] | None = None
) -> list[Request]:
    """Read the requests in a record: by ``keys``, if it has the keys that they name, else by the
    first format that recognises it.

    Raises ``RequestError``, which names the format and the key at fault, or the record's keys and
    the known formats.
    """
    if keys and mapped.fits(record, keys):
        return _read(plain, mapped.renamed(record, keys))
    if (format_ := _format_of(record)) is not None:
        return _read(format_, record)
    raise RequestError(unknown_keys(record, keys))


def is_known(record: Mapping[str, object], keys: Mapping[str, str] | None = None) -> bool:
    """Tell whether some format has a record's keys, or ``keys`` name them."""
    return bool(keys and mapped.fits(record, keys)) or _format_of(record) is not None


def unknown_keys(record: Mapping[str, object], keys: Mapping[str, str] | None = None) -> str:
    """Return the message for a record that no format recognises: its keys, the formats, and a
    remedy."""
    key_names = [named(key) for key in sorted(record)[:KEYS_NAMED_MAX]]
    remainder = [f"and {len(record) - len(key_names)} more"] if len(record) > len(key_names) else []
    items = ", ".join([*key_names, *remainder]) or "none"
    if keys:
        pairs = ", ".join(f"{key}={path}" for key, path in keys.items())
        return f"the record has not all keys that {pairs} names; its keys are: {items}"
    guesses = "".join(f" (did you mean {guess!r} by {named(key)}?)" for key, guess in alike(record))
    names = ", ".join(format_.NAME for format_ in formats())
    return (
        f"no known format has these keys: {items}{guesses}; the formats are {names}. Say which key "
        "is which, with --keys prompt=KEY,target_new=KEY,subject=KEY or under [stream.keys] in "
        "cedit.toml; KEY may be a path as in fact.qas.0.answer"
    )


def alike(record: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return the record's keys that look like one of cedit's own that it lacks, each with the own
    key."""
    return plain.alike(record)


def _format_of(record: Mapping[str, object]) -> Format | None:
    return next((format_ for format_ in formats() if format_.recognises(record)), None)


def _read(format_: Format, record: Mapping[str, object]) -> list[Request]:
    view = Marked(record)
    try:
        requests = format_.read(view)
    except ValidationError as error:
        raise RequestError(f"{format_.NAME}: {explain(error)}") from None
    except RequestError as error:
        raise RequestError(f"{format_.NAME}: {error.reason}") from None
    left_out: frozenset[str] = getattr(format_, "LEFT_OUT", frozenset())
    extra = kept({key: record[key] for key in view.unread if key not in left_out})
    return (
        [r.model_copy(update={"extra": {**r.extra, **extra}}) for r in requests]
        if extra
        else requests
    )
