"""CounterFact in its original schema (Meng et al. 2022).

Paraphrases are held out. Neighbourhood prompts share the old target and must keep it: they are the
locality of the published scores. Attribute and generation prompts serve other scores (essence,
consistency) that judge free text, and are not probes.
"""

from __future__ import annotations

from collections.abc import Mapping

from continual.errors import RequestError
from continual.readers import fields, rewrite
from continual.requests import Probe, Request

NAME = "counterfact"
LEFT_OUT = frozenset({"pararel_idx", "attribute_prompts", "generation_prompts"})


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record holds one requested rewrite."""
    return isinstance(record.get(rewrite.KEY), dict)


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the rewrite, with its paraphrases held out and its neighbourhood as locality."""
    fact = rewrite.read(record[rewrite.KEY])
    request = Request(
        prompt=fact.prompt,
        target_new=fact.target_new,
        subject=fact.subject,
        relation=fact.relation,
        target_old=fact.target_old,
        held_out_rephrases=fields.texts(record, "paraphrase_prompts"),
        locality=_neighborhood(record, fact.target_old),
        case=fields.identifier(record, "case_id"),
    )
    return [request]


def _neighborhood(record: Mapping[str, object], answer: str | None) -> tuple[Probe, ...]:
    prompts = fields.texts(record, "neighborhood_prompts")
    if prompts and answer is None:
        raise RequestError("'neighborhood_prompts' need the 'target_true' of the rewrite")
    return tuple(Probe(prompt=p, answer=answer or "", name="neighborhood") for p in prompts)
