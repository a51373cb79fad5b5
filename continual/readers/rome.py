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
    entries = dict(record)
    request_fields: dict[str, object] = {
        key: entries[key] for key in entries if key not in _FOREIGN
    }
    request_fields["target_new"] = fields.text(
        fields.mapping(entries["target_new"], "target_new"), "str"
    )
    true_target = entries.get("target_true")
    if true_target is not None:
        request_fields["target_old"] = (
            true_target if isinstance(true_target, str) else _text(true_target)
        )
    request_fields |= (
        {"relation": fields.optional_text(entries, "relation_id")}
        if "relation_id" in entries
        else {}
    )
    request_fields |= (
        {"case": fields.identifier(entries, "case_id")} if "case_id" in entries else {}
    )
    return plain.read(request_fields)


def _text(target: object) -> str:
    return fields.text(fields.mapping(target, "target_true"), "str")
