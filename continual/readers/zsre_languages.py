"""zsRE in several languages (Bi-ZsRE, MzsRE): MEND's record under the name of each language.

Each language's question is a request of its own, in the record's order.
"""

from __future__ import annotations

from collections.abc import Mapping

from continual.errors import RequestError
from continual.readers import fields, zsre_mend
from continual.requests import Request

NAME = "zsre_languages"


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether all values of the record are MEND's records."""
    return bool(record) and all(
        isinstance(value, dict) and zsre_mend.recognises(value) for value in record.values()
    )


def read(record: Mapping[str, object]) -> list[Request]:
    """Read one request for each language. Raises RequestError, which names the language at
    fault."""
    return [request for language in list(record) for request in _read(record, language)]


def _read(record: Mapping[str, object], language: str) -> list[Request]:
    try:
        return zsre_mend.read(fields.mapping(record[language], language))
    except RequestError as error:
        raise RequestError(f"{language}: {error.reason}") from None
