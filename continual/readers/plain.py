"""cedit's own format: the fields of ``Request``, by their names.

Recognised last. A prompt that has a slot ``{}``, as ROME's and MEMIT's have it, and does not name
its subject gets the subject in its place. A key that is not ours is kept as ``extra``; one of
another format is an error, as the two would say two things.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from continual.errors import RequestError
from continual.readers import fields
from continual.readers.unread import kept
from continual.requests import OWN_KEYS as KEYS
from continual.requests import Request, named

NAME = "plain"
OWN_KEYS = frozenset(
    {"relation", "target_old", "rephrases", "held_out_rephrases", "case", "messages", "forms"}
)  # keys that no other format with a prompt and a new target has
FOREIGN_KEYS = frozenset(
    {"ground_truth", "rephrase_prompt", "locality_prompt", "locality_ground_truth"}
)  # keys of other formats, which mean what one of ours does
_WORDINGS = ("rephrases", "held_out_rephrases")
_CUTOFF = 0.7  # of difflib's ratio, from which on two keys look alike


def recognises(record: Mapping[str, object]) -> bool:
    """Whether the record has a prompt, or messages, and a new target."""
    return bool({"prompt", "messages"} & record.keys()) and "target_new" in record


def read(record: Mapping[str, object]) -> list[Request]:
    """The request that the record spells out."""
    whole = dict(record)
    if strangers := sorted(FOREIGN_KEYS & whole.keys()):
        raise RequestError(
            f"{', '.join(map(named, strangers))} is not a key of cedit's own format, which "
            f"{', '.join(sorted(map(named, OWN_KEYS & whole.keys())))} is of: use the keys of one"
        )
    own = _filled({key: value for key, value in whole.items() if key in KEYS})
    extra = kept({key: value for key, value in whole.items() if key not in KEYS})
    return [Request.from_json({**own, "extra": extra} if extra else own)]


def alike(record: Mapping[str, object]) -> list[tuple[str, str]]:
    """Keys that are not ours and look like one of ours, each with that one, which is missing."""
    strangers = [key for key in record if key not in KEYS]
    guesses = ((key, _guess(key, record)) for key in strangers)
    return [(key, guess) for key, guess in guesses if guess is not None]


def _guess(key: str, record: Mapping[str, object]) -> str | None:
    """The key of ours that another looks like: first of those that every record needs."""
    for ours in (("prompt", "target_new"), KEYS):
        missing = [name for name in ours if name not in record]
        if alike := get_close_matches(key, missing, n=1, cutoff=_CUTOFF):
            return alike[0]
    return None


def _filled(record: dict[str, object]) -> dict[str, object]:
    """The record with its subject in the slots, one wording as a list of one, and a number that
    names its case as a text."""
    subject, case = record.get("subject"), record.get("case")
    if type(case) is int:
        record["case"] = str(case)
    for key in _WORDINGS:
        if isinstance(wording := record.get(key), str):
            record[key] = [wording]
    if not isinstance(subject, str) or not subject.strip():
        return record
    for key in ("prompt", *_WORDINGS):
        value = record.get(key)
        if isinstance(value, str):
            record[key] = fields.slotted(value, subject, key)
        elif isinstance(value, list):
            record[key] = [
                fields.slotted(text, subject, key) if isinstance(text, str) else text
                for text in value
            ]
    return record
