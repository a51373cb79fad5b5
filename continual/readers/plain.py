"""cedit's own format: the fields of ``Request``, by their names.

Recognised last and read strictly: a key that is not ours is an error, so nothing that a record
says is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping

from continual.requests import Request

NAME = "plain"
OWN_KEYS = frozenset(
    {"relation", "target_old", "rephrases", "held_out_rephrases", "case", "messages", "forms"}
)  # keys that no other format with a prompt and a new target has


def recognises(record: Mapping[str, object]) -> bool:
    """Whether the record has a prompt, or messages, and a new target."""
    return bool({"prompt", "messages"} & record.keys()) and "target_new" in record


def read(record: Mapping[str, object]) -> list[Request]:
    """The request that the record spells out."""
    return [Request.from_json(record)]
