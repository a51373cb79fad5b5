"""cedit's own format: the fields of ``Request``, by their names.

It is recognised last. A prompt with a slot ``{}``, as in ROME's and MEMIT's files, that does not
name its subject gets the subject in the slot. A foreign key is kept as ``extra``; a key of another
format is an error, as it could contradict one of ours.
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
)  # keys of other formats with the same meaning as one of ours
_WORDINGS = ("rephrases", "held_out_rephrases")
_CUTOFF = 0.7  # difflib's ratio from which on two keys look alike


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record has a prompt, or messages, and a new target."""
    return bool({"prompt", "messages"} & record.keys()) and "target_new" in record


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the request that the record spells out."""
    entries = dict(record)
    if strangers := sorted(FOREIGN_KEYS & entries.keys()):
        raise RequestError(
            f"{', '.join(map(named, strangers))} is not a key of cedit's own format, which "
            f"{', '.join(sorted(map(named, OWN_KEYS & entries.keys())))} is of: use the keys of one"
        )
    request_fields = _filled({key: value for key, value in entries.items() if key in KEYS})
    extra = kept({key: value for key, value in entries.items() if key not in KEYS})
    return [Request.from_json({**request_fields, "extra": extra} if extra else request_fields)]


def alike(record: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return the foreign keys that look like one of ours that is missing, each with that one."""
    strangers = [key for key in record if key not in KEYS]
    guesses = ((key, _guess(key, record)) for key in strangers)
    return [(key, guess) for key, guess in guesses if guess is not None]


def _guess(key: str, record: Mapping[str, object]) -> str | None:
    """Return the missing key of ours that another looks like, one that every record needs first."""
    for group in (("prompt", "target_new"), KEYS):
        candidates = [name for name in group if name not in record]
        if matches := get_close_matches(key, candidates, n=1, cutoff=_CUTOFF):
            return matches[0]
    return None


def _filled(record: dict[str, object]) -> dict[str, object]:
    """Return the record with its subject in the slots, a single wording as a list, and a number
    under `case` as text."""
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
