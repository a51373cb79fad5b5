"""MQuAKE: several rewrites, and multi-hop questions whose answer follows from all of them.

Each rewrite becomes a request, with its question as a held-out rephrase. The multi-hop questions
are portability probes of the last one: before it, the chain of facts is not complete. Aliases of
the answers are left out, as a probe has one answer.
"""

from __future__ import annotations

from collections.abc import Mapping

from continual.errors import RequestError
from continual.readers import fields, rewrite
from continual.requests import Probe, Request

NAME = "mquake"
LEFT_OUT = frozenset(
    {"answer", "answer_alias", "new_answer_alias", "single_hops", "new_single_hops", "orig"}
)


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record holds a list of requested rewrites."""
    return isinstance(record.get(rewrite.KEY), list)


def read(record: Mapping[str, object]) -> list[Request]:
    """Read one request for each rewrite, in the order of the chain."""
    entries = fields.items(record, rewrite.KEY)
    if not entries:
        raise RequestError(f"'{rewrite.KEY}' is empty")
    hops = _multi_hop(record)
    case = fields.identifier(record, "case_id")
    return [*(_read(entry, (), case) for entry in entries[:-1]), _read(entries[-1], hops, case)]


def _read(entry: object, hops: tuple[Probe, ...], case: str | None) -> Request:
    fact = rewrite.read(entry)
    return Request(
        prompt=fact.prompt,
        target_new=fact.target_new,
        subject=fact.subject,
        relation=fact.relation,
        target_old=fact.target_old,
        held_out_rephrases=fields.one_or_more_texts(fields.mapping(entry, rewrite.KEY), "question"),
        portability=hops,
        case=case,
    )


def _multi_hop(record: Mapping[str, object]) -> tuple[Probe, ...]:
    questions = fields.texts(record, "questions")
    if not questions:
        return ()
    answer = fields.text(record, "new_answer")
    return tuple(Probe(prompt=q, answer=answer, name="multi_hop") for q in questions)
