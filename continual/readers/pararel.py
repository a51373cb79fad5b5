"""ParaRel (Elazar et al. 2021): facts in one file, the patterns that ask for them in another.

A fact alone has no prompt, so a stream of facts is refused with that reason. ``join`` makes the
request from a fact and the patterns of its relation. A causal model can be asked the patterns that
end in the object; the first is the prompt, the others are held out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from continual.errors import RequestError
from continual.readers import fields
from continual.requests import Request, named

NAME = "pararel"
SUBJECT_SLOT = "[X]"
_OBJECT_AT_END = re.compile(r"\[Y\][\s.]*$")


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record is a fact without a prompt."""
    return {"sub_label", "obj_label"} <= record.keys()


def read(record: Mapping[str, object]) -> list[Request]:
    """Raise RequestError for every fact, with the remedy."""
    raise RequestError(
        "the fact names no way to ask for it: join it with the patterns of its relation "
        "(continual.readers.pararel.join)"
    )


def join(fact: Mapping[str, object], patterns: Sequence[str], relation: str) -> Request:
    """Make the request for a fact from the ``patterns`` (with [X] and [Y]) of its relation. Raises
    RequestError if no pattern ends in the object."""
    subject = fields.text(fact, "sub_label")
    wordings = tuple(
        _OBJECT_AT_END.sub("", pattern).rstrip().replace(SUBJECT_SLOT, subject)
        for pattern in patterns
        if SUBJECT_SLOT in pattern and _OBJECT_AT_END.search(pattern)
    )
    if not wordings:
        raise RequestError(f"no pattern of the relation {named(relation)} ends in its object")
    return Request(
        prompt=wordings[0],
        target_new=fields.text(fact, "obj_label"),
        subject=subject,
        relation=relation,
        held_out_rephrases=wordings[1:],
        case=fields.identifier(fact, "uuid"),
    )
