"""FEVER claims as corrections of a two-class fact checker: the claim and its label."""

from __future__ import annotations

from collections.abc import Mapping

from continual.errors import RequestError
from continual.readers import fields
from continual.requests import Request, named

NAME = "fever"
LEFT_OUT = frozenset({"verifiable", "evidence"})
CLASSES = ("SUPPORTS", "REFUTES")


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record is a claim with its label."""
    return {"claim", "label"} <= record.keys()


def read(record: Mapping[str, object]) -> list[Request]:
    """Read the claim, to be answered by its label. Raises RequestError for other labels than the
    two CLASSES."""
    label = fields.text(record, "label")
    if label not in CLASSES:
        raise RequestError(f"the label {named(label)} is not one of the two classes {CLASSES}")
    claim, case = fields.text(record, "claim"), fields.identifier(record, "id")
    return [Request(prompt=claim, target_new=label, case=case)]
