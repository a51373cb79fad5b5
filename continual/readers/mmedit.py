"""MMEdit (Cheng et al. 2023): the textual side of edits to models that see.

A request has no picture, so it takes the question, its new answer, its rephrase and the textual
locality; ``case`` keeps the picture's name. Without pictures, captions share one prompt and
therefore compete with each other.
"""

from __future__ import annotations

from collections.abc import Mapping

from continual.readers import fields
from continual.readers.zsre_mend import natural_question
from continual.requests import Request

NAME = "mmedit"
LEFT_OUT = frozenset({"image_rephrase", "m_loc", "m_loc_q", "m_loc_a"})


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record has MEND's keys and a picture."""
    return {"src", "alt", "image"} <= record.keys()


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the textual part of the edit."""
    request = Request(
        prompt=fields.text(record, "src"),
        target_new=fields.text(record, "alt"),
        target_old=fields.optional_text(record, "pred"),
        held_out_rephrases=fields.one_or_more_texts(record, "rephrase"),
        locality=natural_question(record),
        case=fields.identifier(record, "image"),
    )
    return [request]
