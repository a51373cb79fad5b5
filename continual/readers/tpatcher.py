"""T-Patcher's format (Huang et al. 2023), which is also KILT's: an input and its good outputs.

The outputs are equally good; the first one with an answer is the target.
"""

from __future__ import annotations

from collections.abc import Mapping

from continual.errors import RequestError
from continual.readers import fields
from continual.requests import Request

NAME = "tpatcher"


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record is an input with its outputs."""
    return {"input", "output"} <= record.keys()


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the input with the first answer, its rephrases held out."""
    request = Request(
        prompt=fields.text(record, "input"),
        target_new=_first_output(record),
        held_out_rephrases=fields.texts(record, "rephrases"),
        case=fields.identifier(record, "id"),
    )
    return [request]


def _first_output(record: Mapping[str, object]) -> str:
    for output in fields.items(record, "output"):
        answer = fields.optional_text(fields.mapping(output, "output"), "answer")
        if answer is not None:
            return answer
    raise RequestError("'output' has no entry with an 'answer'")
