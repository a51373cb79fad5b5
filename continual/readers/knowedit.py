"""KnowEdit: EasyEdit's idea with lists of probes in each group, and two names for some keys.

Most parts say ``subject``, ``prompt`` and ``target_new``; WikiBio says ``concept``, ``text`` and
``labels``.
"""

from __future__ import annotations

from collections.abc import Mapping

from continual.readers import fields
from continual.readers.plain import OWN_KEYS
from continual.requests import Request

NAME = "knowedit"
LEFT_OUT = frozenset({"cond"})


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether an edit has lists of probes, or WikiBio's keys."""
    if {"text", "labels"} <= record.keys():
        return True
    edit = {"subject", "prompt", "target_new"} <= record.keys() and not OWN_KEYS & record.keys()
    return edit and (_lists(record.get("locality")) or _lists(record.get("portability")))


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the edit, with its rephrases held out and its named lists of probes."""
    wikibio = "labels" in record
    request = Request(
        prompt=fields.text(record, "text") if wikibio else fields.slotted_text(record, "prompt"),
        target_new=fields.text(record, "labels" if wikibio else "target_new"),
        subject=fields.optional_text(record, "concept" if wikibio else "subject"),
        target_old=fields.first_answer(record, "ground_truth"),
        held_out_rephrases=fields.one_or_more_texts(record, "rephrase_prompt"),
        locality=fields.probe_groups(record, "locality"),
        portability=fields.probe_groups(record, "portability"),
        case=fields.identifier(record, "case_id"),
    )
    return [request]


def _lists(groups: object) -> bool:
    return isinstance(groups, dict) and any(isinstance(group, list) for group in groups.values())
