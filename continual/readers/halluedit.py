"""HalluEditBench (Huang et al. 2024): questions that a model answered wrongly, one row each.

The paraphrase is held out, and the questions over several hops are portability. The locality
question has no answer in the file, so it cannot be measured and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from continual.readers import fields
from continual.requests import Request

NAME = "halluedit"
HOPS = range(2, 7)
LEFT_OUT = frozenset({"output_m", "eval_m", "locality_question", "yes_question", "no_question"})


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record is a fact with a question for it."""
    return {"question", "object", "subject", "relation"} <= record.keys()


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the question, to be answered by the fact's object."""
    hops = (
        fields.probe_pair(record, f"question_{n}hop", f"answer_{n}hop", name=f"{n}hop")
        for n in HOPS
    )
    request = Request(
        prompt=fields.text(record, "question"),
        target_new=fields.text(record, "object"),
        subject=fields.optional_text(record, "subject"),
        relation=fields.optional_text(record, "relation"),
        held_out_rephrases=fields.one_or_more_texts(record, "paraphrased_question"),
        portability=tuple(probe for group in hops for probe in group),
    )
    return [request]
