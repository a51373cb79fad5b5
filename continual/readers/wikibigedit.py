"""WikiBigEdit: questions on facts that changed between two snapshots of Wikidata.

The rephrase and the persona's wording are held out; the multi-hop question, if a record has one,
is portability.
"""

from __future__ import annotations

from collections.abc import Mapping

from continual.readers import fields
from continual.requests import Request

NAME = "wikibigedit"


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record is an updated question with its answer."""
    return {"update", "ans"} <= record.keys()


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the question, with its other wordings held out and its probes."""
    rephrases = fields.one_or_more_texts(record, "rephrase")
    request = Request(
        prompt=fields.text(record, "update"),
        target_new=fields.text(record, "ans"),
        subject=fields.optional_text(record, "subject"),
        held_out_rephrases=rephrases + fields.one_or_more_texts(record, "personas"),
        locality=fields.probe_pair(record, "loc", "loc_ans", name="loc"),
        portability=fields.probe_pair(record, "mhop", "mhop_ans", name="mhop"),
    )
    return [request]
