"""Records of Argilla: fields with the question, and a person's response with the right answer.

Of the questions that people were asked the first that is answered by a text counts; responses that
were discarded do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from continual.errors import RequestError
from continual.readers import fields
from continual.readers.asked import ANSWERS, prompt_in
from continual.requests import Request

NAME = "argilla"
LEFT_OUT = frozenset(
    {"status", "suggestions", "vectors", "metadata", "_server_id", "inserted_at", "updated_at"}
)


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record has fields and responses."""
    return {"fields", "responses"} <= record.keys()


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the record. Raises RequestError for one without a response that is a text."""
    answer = next(_answers(fields.mapping(record.get("responses"), "responses")), None)
    if answer is None:
        raise RequestError("'responses' has no text: nobody wrote the right answer")
    request = Request(
        prompt=prompt_in(fields.mapping(record.get("fields"), "fields"), "fields"),
        target_new=answer,
        case=fields.identifier(record, "id"),
    )
    return [request]


def _answers(responses: Mapping[str, object]) -> Iterator[str]:
    """Yield the texts of responses, those under usual names first."""
    names = sorted(responses, key=lambda name: (name not in ANSWERS, list(responses).index(name)))
    for name in names:
        for value in fields.items(responses, name):
            response = fields.mapping(value, name)
            answer = response.get("value")
            is_kept = response.get("status") != "discarded"
            if is_kept and isinstance(answer, str) and answer.strip():
                yield answer
