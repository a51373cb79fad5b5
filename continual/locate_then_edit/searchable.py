"""Tells whether a model can run the passes of a search for values, and readies it for them.

A search runs the ends of texts alone, from one block upward, many in a row. Gates that need whole
texts do not fit into that: some are silenced for the search, others forbid it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from continual.effects.places import POOLED
from continual.model import EditedModel


def unsearchable(edited: EditedModel) -> str | None:
    """Return the reason why no value can be searched for on a model as it stands; None if one
    can."""
    for effect in edited.open_gates:
        if effect.place.is_remote or effect.place.key == POOLED:
            return (
                f"gates from {effect.place} are on, which a search for values cannot run: "
                "go on with another editor, such as tpatcher"
            )
    return None


def readable(edited: EditedModel) -> AbstractContextManager[None]:
    """Run the model within `with` so that the ends of texts can be run alone: without neurons at
    its last place that read the text before them. The proof sees them again."""
    bank = edited.site_bank
    return bank.silenced() if bank.reads_texts else nullcontext()
