"""Checks that an addition to a site's output joins the residual sum, and moves the logits.

A norm behind the sum that was not found, or a factor on the FFN's output, would change a patch on
its way. Compares sums in the units of their own rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from continual import hooks
from continual.anatomy import Anatomy, sample_inputs
from continual.errors import ModelError
from continual.passes.partial import capture_rows, logits_of
from continual.passes.row_tail import RowTail, distance_told, is_close
from continual.storage import input_device


@torch.no_grad()
def moves_logits(model: Any, anatomy: Anatomy) -> bool:
    """Tell whether an addition to the output of the last block moves the logits."""
    inputs = sample_inputs(model, length=8)
    patch = torch.linspace(-1, 1, anatomy.width, device=input_device(model))
    with hooks.added(_landing(model, anatomy), patch.to(next(model.parameters()).dtype)):
        patched_logits = logits_of(model, inputs)
    return not torch.equal(patched_logits, logits_of(model, inputs))


_ADDED_ROUNDINGS = 4
"""Roundings by which an addition to a sum may be off."""


_SCALED_EVENLY = 0.1
"""The share of a scaled patch that may be rounding."""


@torch.no_grad()
def check_additive(
    model: Any, anatomy: Anatomy, inputs: Mapping[str, Tensor], tail: RowTail
) -> RowTail:
    """Return the tail, if an addition to the FFN's output is added to the residual sum unchanged.
    Raises ``ModelError`` otherwise.

    """
    summed, patched = _require_added(model, anatomy, inputs)
    logits = tail(summed)
    logits = logits if tail.pooled is None else logits[tail.pooled]
    if not is_close(logits, patched):
        raise ModelError(
            f"The logits of {type(model).__name__} do not follow what is added to "
            f"{_landing_path(anatomy)}: {distance_told(logits, patched)}."
        )
    return tail


def _require_added(
    model: Any, anatomy: Anatomy, inputs: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return residual sums [T, d] with an addition to the site's output, and the model's logits
    [T, vocab] or [labels] with it. Raises ``ModelError`` if it does not join the sum unchanged.

    Compares the sum itself, in the units of its own rounding: half-precision logits would hide a
    factor of 0.9.
    """
    hidden = capture_rows(model, anatomy, inputs, anatomy.last).hidden
    hidden = hidden.reshape(-1, anatomy.width)
    patch = torch.linspace(-1, 1, anatomy.width).to(hidden) * hidden.std()
    with hooks.added(_landing(model, anatomy), patch):
        patched = capture_rows(model, anatomy, inputs, anatomy.last)
    patched_sums = patched.hidden.reshape(-1, anatomy.width)
    joined = (patched_sums.double() - hidden.double()), patch.double()
    if not _is_added(*joined, hidden):
        raise ModelError(
            f"What is added to the output of {_landing_path(anatomy)} in "
            f"{type(model).__name__} is changed before it joins the residual sum "
            f"({_changed(*joined)}). If a norm behind the sum was not found, name it in cedit.toml "
            "under [anatomy]: norm_after."
        )
    return hidden + patch, patched.logits[0]


def _landing(model: Any, anatomy: Anatomy) -> nn.Module:
    """Return the module of the last block on whose output values land."""
    if anatomy.is_at_ffn:
        return anatomy.down_module(model, anatomy.last)
    return anatomy.block(model, anatomy.last)


def _landing_path(anatomy: Anatomy) -> str:
    inside = anatomy.down if anatomy.is_at_ffn else None
    last_block = anatomy.last
    return anatomy.block_path(last_block) if inside is None else anatomy.path(last_block, inside)


def _is_added(found: Tensor, patch: Tensor, hidden: Tensor) -> bool:
    """Tell whether a sum [T, d] grew by the patch [d], up to the rounding of its number format: in
    each number, and in all of them together, where roundings cancel out."""
    eps = torch.finfo(hidden.dtype).eps
    magnitude = hidden.double().abs().max() + patch.abs().max()
    is_near = bool((found - patch).abs().max() <= _ADDED_ROUNDINGS * eps * magnitude)
    spread = magnitude / patch.square().mean().sqrt() / math.sqrt(found.numel())
    is_unbiased = abs(_share(found, patch) - 1) <= _ADDED_ROUNDINGS * eps * float(spread)
    return is_near and is_unbiased


def _share(found: Tensor, patch: Tensor) -> float:
    """Return the factor by which a patch [d] was multiplied before it was added to [T, d]."""
    return float((found * patch).sum() / (len(found) * patch.square().sum()))


def _changed(found: Tensor, patch: Tensor) -> str:
    """Describe the change of a patch on its way to the sum."""
    factor = _share(found, patch)
    rest = (found - factor * patch).abs().max() / patch.abs().max()
    if rest < _SCALED_EVENLY:
        return f"multiplied by {factor:.3g}"
    return f"normalised or mixed: {float(rest):.0%} of it are no multiple of what was added"
