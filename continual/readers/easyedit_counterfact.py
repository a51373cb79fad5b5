"""EasyEdit's flat CounterFact, and the files of WISE that share its keys.

One rephrase and one locality prompt stand beside the edit. WISE's temporal set calls its rephrase
``ood_rephrase``; its hallucination set has none, and targets of whole sentences.
"""

from __future__ import annotations

from collections.abc import Mapping

from continual.readers import fields
from continual.readers.plain import OWN_KEYS
from continual.requests import Request

NAME = "easyedit_counterfact"


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether an edit has one locality prompt beside it."""
    keys = {"prompt", "target_new", "locality_prompt", "locality_ground_truth"}
    return keys <= record.keys() and not OWN_KEYS & record.keys()


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the edit, with its rephrase held out and its one locality probe."""
    rephrases = fields.one_or_more_texts(record, "rephrase_prompt")
    request = Request(
        prompt=fields.slotted_text(record, "prompt"),
        target_new=fields.text(record, "target_new"),
        subject=fields.optional_text(record, "subject"),
        target_old=fields.first_answer(record, "ground_truth"),
        held_out_rephrases=rephrases + fields.one_or_more_texts(record, "ood_rephrase"),
        locality=fields.probe_pair(
            record, "locality_prompt", "locality_ground_truth", name="locality_prompt"
        ),
        case=fields.identifier(record, "case_id"),
    )
    return [request]
