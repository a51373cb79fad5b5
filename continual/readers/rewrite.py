"""The ``requested_rewrite`` object that CounterFact and MQuAKE share.

Knows its template, its subject and its two targets; leaves the prompts around it to the formats.
"""

from __future__ import annotations

from dataclasses import dataclass

from continual.readers import fields

KEY = "requested_rewrite"


@dataclass(frozen=True)
class Rewrite:
    """One fact to be rewritten, with the subject filled into its prompt."""

    prompt: str
    subject: str
    relation: str | None
    target_new: str
    target_old: str | None


def read(value: object) -> Rewrite:
    """Read the rewrite that a record's ``requested_rewrite``, or one entry of it, describes."""
    rewrite = fields.mapping(value, KEY)
    subject = fields.text(rewrite, "subject")
    target_true = rewrite.get("target_true")
    return Rewrite(
        prompt=fields.filled(fields.text(rewrite, "prompt"), subject, "prompt"),
        subject=subject,
        relation=fields.optional_text(rewrite, "relation_id"),
        target_new=fields.text(fields.mapping(rewrite.get("target_new"), "target_new"), "str"),
        target_old=None
        if target_true is None
        else fields.text(fields.mapping(target_true, "target_true"), "str"),
    )
