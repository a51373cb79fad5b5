"""zsRE questions with MEND's keys (Mitchell et al. 2022), with or without portability.

``alt`` is the new target. In files without it the true answer is the new target, and the model's
own prediction the old one. An empty ``alt`` is an edit without a target.
"""

from __future__ import annotations

from collections.abc import Mapping

from continual.readers import fields
from continual.requests import Probe, Request

NAME = "zsre_mend"
LEFT_OUT = frozenset({"pred", "cond"})
QUESTION_PREFIX = "nq question: "  # marks Natural Questions in the locality prompts


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record has MEND's keys."""
    return {"src", "rephrase", "loc"} <= record.keys() and bool({"alt", "answers"} & record.keys())


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the question with its new target, its rephrase held out and its probes."""
    target_new, target_old = _targets(record)
    request = Request(
        prompt=fields.text(record, "src"),
        target_new=target_new,
        subject=fields.optional_text(record, "subject"),
        target_old=target_old,
        held_out_rephrases=fields.one_or_more_texts(record, "rephrase"),
        locality=natural_question(record),
        portability=_portability(record),
        case=fields.identifier(record, "id"),
    )
    return [request]


def natural_question(record: Mapping[str, object]) -> tuple[Probe, ...]:
    """Return the locality probe under ``loc`` and ``loc_ans``, without the prefix of its source."""
    question = fields.optional_text(record, "loc")
    text = None if question is None else question.removeprefix(QUESTION_PREFIX)
    return fields.probe(text, fields.first_answer(record, "loc_ans"), "loc", "loc")


def _targets(record: Mapping[str, object]) -> tuple[str, str | None]:
    """Return the new target and the old one."""
    true_answer = fields.first_answer(record, "answers")
    if "alt" in record:
        return fields.text(record, "alt"), true_answer
    return fields.text({"answers": true_answer}, "answers"), fields.optional_text(record, "pred")


def _portability(record: Mapping[str, object]) -> tuple[Probe, ...]:
    if record.get("portability") is None:
        return ()
    relation = fields.mapping(record["portability"], "portability")
    return fields.probe_pair(relation, "New Question", "New Answer", name="Recalled Relation")
