"""RippleEdits (Cohen et al. 2023): a new fact as a sentence, and tests of its consequences.

The sentence of the new fact and the original one differ in their ends: their common beginning is
the prompt. Consequences (compositions, logic, aliases of the subject) are portability; other facts
about the subject and relations that must stay are locality. Of several answers the first counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile

from continual.errors import RequestError
from continual.readers import fields
from continual.requests import Probe, Request

NAME = "ripple"
FOLLOWS = (
    "Logical_Generalization",
    "Compositionality_I",
    "Compositionality_II",
    "Subject_Aliasing",
)
STAYS = ("Relation_Specifity", "Forgetfulness")
LEFT_OUT = frozenset({"example_type"})
_VERB = re.compile(r"\s(?:is|are|was|were)(?=\s)")


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record is an edit with groups of tests."""
    return isinstance(record.get("edit"), dict) and bool({*FOLLOWS, *STAYS} & record.keys())


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the edit, with its tests as probes."""
    edit = fields.mapping(record["edit"], "edit")
    prompt, target_new, target_old = _parts(edit)
    request = Request(
        prompt=prompt,
        target_new=target_new,
        target_old=target_old,
        relation=fields.optional_text(edit, "relation"),
        locality=tuple(probe for name in STAYS for probe in _probes(record, name)),
        portability=tuple(probe for name in FOLLOWS for probe in _probes(record, name)),
    )
    return [request]


def _parts(edit: Mapping[str, object]) -> tuple[str, str, str]:
    """Return the prompt, the new target and the old one. Raises RequestError for sentences that do
    not begin alike."""
    new_sentence = fields.text(edit, "prompt")
    original = edit.get("original_fact")
    if original is None:
        raise RequestError("'edit' has no 'original_fact', which shows where its target begins")
    old_sentence = fields.text(fields.mapping(original, "original_fact"), "prompt")
    pairs = zip(new_sentence, old_sentence, strict=False)
    shared = "".join(letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    verbs = list(_VERB.finditer(shared))
    end = verbs[-1].end() if verbs else shared.rfind(" ")
    targets = [
        text[end:].strip().removesuffix(".").strip() for text in (new_sentence, old_sentence)
    ]
    if end <= 0 or not all(targets):
        raise RequestError("the sentences of 'edit' and of its 'original_fact' do not begin alike")
    return new_sentence[:end].rstrip(), targets[0], targets[1]


def _probes(record: Mapping[str, object], name: str) -> Iterator[Probe]:
    for case in fields.items(record, name):
        for query in fields.items(fields.mapping(case, name), "test_queries"):
            yield from _probe(fields.mapping(query, "test_queries"), name)


def _probe(query: Mapping[str, object], name: str) -> tuple[Probe, ...]:
    """Return the query as a probe with its first answer that is not blank."""
    values = (
        fields.optional_text(fields.mapping(answer, "answers"), "value")
        for answer in fields.items(query, "answers")
    )
    answer = next((value for value in values if value is not None), None)
    return fields.probe(fields.optional_text(query, "prompt"), answer, name, name)
