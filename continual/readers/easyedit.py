"""EasyEdit's format: an edit with named groups of locality and portability probes.

Leaves a record that mixes these keys with cedit's own to ``plain``, which names the foreign ones.
"""

from __future__ import annotations

from collections.abc import Mapping

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
        held_out_rephrases=fields.one_or_more_texts(record, "rephrase_prompt"),
        locality=fields.probe_groups(record, "locality"),
        portability=fields.probe_groups(record, "portability"),
        case=fields.identifier(record, "case_id"),
    )
    return [request]
