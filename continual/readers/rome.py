"""The format of requests in ROME's and MEMIT's code (Meng et al. 2022).

Its prompt has a slot for the subject, and its targets stand in objects: {"str": "Vienna"}. All
other keys are cedit's own.
"""

from __future__ import annotations

from collections.abc import Mapping

from continual.readers import fields, plain
from continual.requests import Request

NAME = "rome"
_FOREIGN = ("target_new", "target_true", "relation_id", "case_id")


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record has a prompt, and an object with a text as its target."""
    target = record.get("target_new")
    return "prompt" in record and isinstance(target, dict) and "str" in target


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the request, with its subject in the prompt's slot."""
    whole = dict(record)
    own: dict[str, object] = {key: whole[key] for key in whole if key not in _FOREIGN}
    own["target_new"] = fields.text(fields.mapping(whole["target_new"], "target_new"), "str")
    old = whole.get("target_true")
    if old is not None:
        own["target_old"] = old if isinstance(old, str) else _text(old)
    own |= (
        {"relation": fields.optional_text(whole, "relation_id")} if "relation_id" in whole else {}
    )
    own |= {"case": fields.identifier(whole, "case_id")} if "case_id" in whole else {}
    return plain.read(own)


def _text(target: object) -> str:
    return fields.text(fields.mapping(target, "target_true"), "str")
