"""Tasks of Label Studio with annotations: the text that somebody wrote is the right answer.

The question is in the task's data; the last annotation that was not cancelled counts, and in it the
first text area.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from continual.errors import RequestError
from continual.readers import fields
from continual.readers.asked import answer_in, prompt_in
from continual.requests import Request

NAME = "label_studio"
LEFT_OUT = frozenset(
    {
        *("drafts", "predictions", "meta", "created_at", "updated_at", "inner_id", "project"),
        *("total_annotations", "cancelled_annotations", "total_predictions", "comment_count"),
        *("unresolved_comment_count", "last_comment_updated_at", "updated_by", "comment_authors"),
        *("file_upload", "allow_skip", "precomputed_agreement"),
    }
)


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record has data and annotations."""
    return {"data", "annotations"} <= record.keys()


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the task. Raises RequestError for one that nobody has written a text for."""
    texts = list(_texts(record))
    if not texts:
        raise RequestError("'annotations' has no text area: nobody wrote the right answer")
    request = Request(
        prompt=prompt_in(fields.mapping(record.get("data"), "data"), "data"),
        target_new=answer_in(texts[0], "text"),
        case=fields.identifier(record, "id"),
    )
    return [request]


def _texts(record: Mapping[str, object]) -> Iterator[object]:
    """Yield the texts that were written, the latest annotation's first."""
    for value in reversed(fields.items(record, "annotations")):
        annotation = fields.mapping(value, "annotations")
        if annotation.get("was_cancelled"):
            continue
        for entry in fields.items(annotation, "result"):
            region = fields.mapping(entry, "result")
            if region.get("type") == "textarea":
                yield fields.mapping(region.get("value"), "value").get("text")
