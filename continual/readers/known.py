"""Facts that GPT-2 XL knows, collected for causal tracing (Meng et al. 2022).

The prompt is the template with the subject and, at times, the model's own first words; the
attribute comes next.
"""

from __future__ import annotations

from collections.abc import Mapping

from continual.readers import fields
from continual.requests import Request

NAME = "known"
LEFT_OUT = frozenset({"template", "prediction"})


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record is a fact with its template."""
    return {"subject", "attribute", "template", "prompt"} <= record.keys()


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the fact, with the prompt that the model answered."""
    request = Request(
        prompt=fields.text(record, "prompt"),
        target_new=fields.text(record, "attribute"),
        subject=fields.text(record, "subject"),
        relation=fields.optional_text(record, "relation_id"),
        case=fields.identifier(record, "known_id"),
    )
    return [request]
