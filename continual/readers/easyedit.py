"""EasyEdit's format: an edit with named groups of locality and portability probes, and perhaps with
pictures.

Leaves a record that mixes these keys with cedit's own to ``plain``, which names the foreign ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from continual.picture_marks import digests_in, substituted
from continual.readers import fields
from continual.readers.plain import OWN_KEYS
from continual.requests import Request

NAME = "easyedit"


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether an edit has EasyEdit's keys beside it."""
    edit = {"prompt", "target_new"} <= record.keys() and not OWN_KEYS & record.keys()
    return edit and (
        bool({"ground_truth", "rephrase_prompt"} & record.keys())
        or isinstance(record.get("locality"), dict)
        or isinstance(record.get("portability"), dict)
    )


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the edit, with its rephrases held out and its named groups of probes."""
    request = Request(
        prompt=fields.slotted_text(record, "prompt"),
        target_new=fields.text(record, "target_new"),
        subject=fields.optional_text(record, "subject"),
        target_old=fields.first_answer(record, "ground_truth"),
        held_out_rephrases=(
            *fields.one_or_more_texts(record, "rephrase_prompt"),
            *_other_pictures(record),
        ),
        locality=fields.probe_groups(record, "locality"),
        portability=fields.probe_groups(record, "portability"),
        case=fields.identifier(record, "case_id"),
    )
    return [request]


def _other_pictures(record: Mapping[str, object]) -> Iterator[str]:
    """Yield the prompt with other pictures of the same content, where their marks are given."""
    prompt = fields.slotted_text(record, "prompt")
    for key in ("image_rephrase", "rephrase_image"):
        picture = record.get(key)
        if isinstance(picture, str) and (digests := digests_in(picture)):
            yield substituted(prompt, digests)
