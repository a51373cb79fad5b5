"""Items of Langfuse's data sets: an input, and the output that was expected instead.

Items made from a corrected trace have the correction as their expected output. An `output` beside
it is the answer that was wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

from continual.errors import RequestError
from continual.readers import fields
from continual.readers.asked import answer_in, prompt_in
from continual.requests import Request

NAME = "langfuse"
LEFT_OUT = frozenset(
    {"status", "datasetId", "datasetName", "createdAt", "updatedAt", "sourceObservationId"}
)
_EXPECTED = ("expectedOutput", "expected_output")


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record has an input and an expected output."""
    return "input" in record and any(name in record for name in _EXPECTED)


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the item."""
    expected = next(name for name in _EXPECTED if name in record)
    request = Request(
        prompt=prompt_in(record.get("input"), "input"),
        target_new=answer_in(record.get(expected), expected),
        target_old=_said(record.get("output")),
        case=fields.identifier(record, "id"),
    )
    return [request]


def _said(value: object) -> str | None:
    """Return the wrong answer, if it is told."""
    try:
        return None if value is None else answer_in(value, "output")
    except RequestError:
        return None
