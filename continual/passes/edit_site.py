"""Finds the site at which a model can be edited, with the row tail behind it.

The FFN site is tried first, then the block site, then the single modules around the blocks. Leaves
the parts of a check to ``row_tail`` and ``additions``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from continual.anatomy import (
    WANTS_OTHER_INPUTS,
    Anatomy,
    enclosing_modules,
    reads_ahead,
    sample_inputs,
)
from continual.errors import ModelError
from continual.out_of_memory import is_out_of_memory
from continual.passes.additions import check_additive, moves_logits
from continual.passes.row_tail import NeverRuns, RowTail, check_rows, model_as_tail, tail_steps


def find_tail(model: Any, anatomy: Anatomy) -> RowTail:
    """Build the row tail of the last block from one observed token, and check it on eight.

    A model whose end is no chain of modules is its own tail: it runs on the rows, without its
    blocks. Raises ``ModelError`` if neither gives the model's own logits, or if an addition to the
    output of ``down`` is not simply added to the residual sum.
    """
    inputs = sample_inputs(model, length=8)
    try:
        rows = RowTail(tail_steps(model, anatomy), None)
        return check_additive(model, anatomy, inputs, check_rows(model, anatomy, inputs, rows))
    except NeverRuns:
        raise
    except ModelError as refusal:
        try:
            rows = RowTail(model_as_tail(model, anatomy), None)
            return check_additive(model, anatomy, inputs, check_rows(model, anatomy, inputs, rows))
        except WANTS_OTHER_INPUTS as error:
            if is_out_of_memory(error):
                raise
        except ModelError:
            pass
        raise refusal


def settled(model: Any, anatomy: Anatomy) -> Anatomy:
    """Return the anatomy with the site that the model has: the FFN site, else the block site, else
    the site behind all blocks, else the block site without rows, where they do not give the logits.

    Raises ModelError if nothing can be added to the states of the model.
    """
    refusal = _refusal(model, anatomy)
    if refusal and anatomy.is_at_ffn:
        anatomy = anatomy.at_blocks(refusal)
        refusal = _refusal(model, anatomy)
    if not refusal:
        return anatomy
    enclosing = list(enclosing_modules(model, anatomy))
    with_rows = next((candidate for candidate in enclosing if not _refusal(model, candidate)), None)
    if with_rows is not None:
        return with_rows
    moving = next(
        (candidate for candidate in [anatomy, *enclosing] if moves_logits(model, candidate)), None
    )
    if moving is None:
        raise ModelError(
            f"No place was found in {type(model).__name__} from which its answers can be moved: "
            f"{refusal} Models of this kind cannot be corrected."
        )
    return replace(moving, no_rows=refusal)


def usual_context(model: Any, anatomy: Anatomy) -> int | None:
    """Return the block that gives queries at the last FFN their context unless a user says
    otherwise, the one in the middle; None for a model whose queries can have none."""
    block = anatomy.last // 2
    if block < 1 or not anatomy.is_at_ffn or anatomy.encoder is not None:
        return None
    return None if reads_ahead(model, anatomy) else block


def _refusal(model: Any, anatomy: Anatomy) -> str:
    """Return the reason why rows at an anatomy's site do not give the logits; empty if they do."""
    try:
        find_tail(model, anatomy)
    except NeverRuns:
        raise
    except ModelError as refusal:
        return str(refusal)
    except WANTS_OTHER_INPUTS as error:
        if is_out_of_memory(error):
            raise
        return f"{type(model).__name__} cannot be run in parts ({error})."
    return ""
