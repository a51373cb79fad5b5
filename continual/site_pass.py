"""The pass that shows sequences at the last FFN, made as cheap as it can be.

In a decoder, what stands at a token depends on nothing behind it: padding at the end needs no mask,
where a model is seen to keep to that. And small passes spend a third of their time on the way from
module to module: after some dozens the pass is traced, and the trace takes over if it gives the
very bits of the model's own modules, for batches of other shapes too. Weights that are edited in
place act in both.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from continual.anatomy import Anatomy, sample_inputs
from continual.partial import capture_answers, capture_site

TRACED_AFTER = 32  # passes: tracing costs about as much as it spares in a hundred
TRACED_SHAPE = (3, 12)  # sequences, tokens
CHECKED_SHAPES = ((1, 1), (1, 2), (1, 7), (1, 31), (2, 5), (3, 16), (9, 8))
TRACED_TOKENS_MAX = 512  # of a batch: larger ones spend their time in the matrices
PADDED_LENGTHS = (9, 5)  # of the sequences that padding is tried on


class SitePass:
    """Query and residual sum at the last FFN, for some positions of a batch, without gradients."""

    def __init__(self, model: Any, anatomy: Anatomy) -> None:
        self._model, self._anatomy = model, anatomy
        self._needs_mask: bool | None = None  # not known yet
        self._passes = 0  # that could have been traced
        self._trace: Any = None

    def __call__(self, inputs: Mapping[str, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
        """As `capture_answers`, [n, d] each, for real positions; padding stands behind them."""
        ids = inputs["input_ids"]
        if "decoder_input_ids" in inputs:
            return capture_answers(self._model, self._anatomy, inputs, rows)
        if "attention_mask" in inputs:
            if self._needs_mask is None:
                self._needs_mask = needs_mask(self._model, self._anatomy)
            if self._needs_mask:
                return capture_answers(self._model, self._anatomy, inputs, rows)
        if ids.numel() <= TRACED_TOKENS_MAX:
            self._passes += 1
            if self._passes == TRACED_AFTER:
                self._trace = _trace(self._model, self._anatomy)
            if self._trace is not None:
                return _run(self._trace, ids, rows)
        return capture_answers(self._model, self._anatomy, {"input_ids": ids}, rows)


def needs_mask(model: Any, anatomy: Anatomy) -> bool:
    """Whether padding behind a sequence changes what is shown of it, unless a mask is given."""
    longest, shortest = PADDED_LENGTHS
    ids = sample_inputs(model, longest)["input_ids"].repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, shortest:] = 0
    last = anatomy.last
    masked = capture_site(model, anatomy, {"input_ids": ids, "attention_mask": mask}, last)
    bare = capture_site(model, anatomy, {"input_ids": ids}, last)
    pairs = [(m[1, :shortest], b[1, :shortest]) for m, b in zip(masked, bare, strict=True)]
    return not all(_is_close(found, expected) for found, expected in pairs)


def _is_close(found: Tensor, expected: Tensor) -> bool:
    """Whether both differ by rounding only: half of the digits agree."""
    digits = math.sqrt(torch.finfo(expected.dtype).eps)
    return bool((found - expected).abs().max() <= digits * expected.abs().max())


class _Captured(nn.Module):
    """The pass as a module, for the tracer."""

    def __init__(self, model: Any, anatomy: Anatomy) -> None:
        super().__init__()
        self._model, self._anatomy = model, anatomy

    def forward(self, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return capture_answers(self._model, self._anatomy, {"input_ids": ids}, rows)


def _trace(model: Any, anatomy: Anatomy) -> Any:
    """The traced pass, or None for a model that cannot be traced to the same bits."""
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of what is constant in a trace: it is checked below
            given = _sample(model, *TRACED_SHAPE)
            traced = torch.jit.trace(_Captured(model, anatomy).eval(), given, check_trace=False)
            trace = torch.jit.freeze(traced)  # no look-ups of the weights, which stay the model's
        same = all(_is_same(trace, model, anatomy, *_sample(model, *s)) for s in CHECKED_SHAPES)
    except Exception:  # whatever a model does that the tracer does not know
        return None
    return trace if same else None


def _sample(model: Any, sequences: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Ids [sequences, tokens] that are not all alike, and every third position or so."""
    ids = sample_inputs(model, sequences * tokens)["input_ids"].view(sequences, tokens)
    return ids, torch.arange(0, ids.numel(), 3, device=ids.device)


def _is_same(trace: Any, model: Any, anatomy: Anatomy, ids: Tensor, rows: Tensor) -> bool:
    own = capture_answers(model, anatomy, {"input_ids": ids}, rows)
    return all(map(torch.equal, own, _run(trace, ids, rows)))


def _run(trace: Any, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    as_written = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    with torch.inference_mode(), as_written:
        query, hidden = trace(ids, rows)
    return query, hidden
