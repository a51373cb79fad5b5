"""The pass that shows sequences at the last FFN, made as cheap as it can be.

In a decoder a token's states depend on nothing behind it: padding at the end needs no mask, if a
check of the model confirms this. And small passes spend a third of their time on the way from
module to module: after some dozens the pass is traced, and the trace takes over if it gives the
very bits of the model's own modules, for batches of other shapes too. Weights edited in place act
in both. A short pass is given its causal mask, which a model makes anew each time in some dozens of
small steps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from continual.anatomy import Anatomy, sample_inputs
from continual.passes.partial import capture_answers, capture_site
from continual.storage import is_plain

TRACED_AFTER = 32  # passes: tracing costs about as much as it spares in a hundred
TRACED_SHAPE = (3, 12)  # sequences, tokens
CHECKED_SHAPES = ((1, 1), (1, 2), (1, 7), (1, 31), (2, 5), (3, 16), (9, 8))
SHORT = max(tokens for _, tokens in CHECKED_SHAPES)  # a model may look no further than a window
TRACED_TOKENS_MAX = 512  # of a batch: larger ones spend their time in the matrices
PADDED_LENGTHS = (9, 5)  # of the sequences in the check of padding


class SitePass:
    """Query and residual sum at the last FFN, for some positions of a batch, without gradients."""

    def __init__(self, model: Any, anatomy: Anatomy) -> None:
        self._model, self._anatomy = model, anatomy
        self._needs_mask: bool | None = None  # not known yet
        self._short = _TracedLater(model, anatomy, (True, False))
        self._long = _TracedLater(model, anatomy, (False,))

    def __call__(
        self, inputs: Mapping[str, Tensor], rows: Tensor, *, is_whole: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return query and residual sum as `capture_answers`, [n, d] each, for real positions;
        padding stands behind them.

        With `is_whole` the pass takes no shortcut: gates at other places see all tokens, and the
        mask.
        """
        if is_whole:
            return self._whole(inputs, rows)
        ids = inputs["input_ids"]
        if "decoder_input_ids" in inputs:
            return capture_answers(self._model, self._anatomy, inputs, rows)
        if "attention_mask" in inputs:
            if self._needs_mask is None:
                self._needs_mask = needs_mask(self._model, self._anatomy)
            if self._needs_mask:
                return capture_answers(self._model, self._anatomy, inputs, rows)
        if ids.numel() <= TRACED_TOKENS_MAX:
            trace = (self._short if ids.shape[1] <= SHORT else self._long).once_more()
            if trace is not None:
                return trace(ids, rows)
        return capture_answers(self._model, self._anatomy, {"input_ids": ids}, rows)

    def _whole(self, inputs: Mapping[str, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
        query, hidden = capture_site(self._model, self._anatomy, inputs, self._anatomy.last)
        return query.flatten(0, 1).index_select(0, rows), hidden.flatten(0, 1)[rows]


def needs_mask(model: Any, anatomy: Anatomy) -> bool:
    """Tell whether padding behind a sequence changes its states if no mask is given."""
    full_length, short_length = PADDED_LENGTHS
    ids = sample_inputs(model, full_length)["input_ids"].repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, short_length:] = 0
    block = anatomy.last
    masked_states = capture_site(model, anatomy, {"input_ids": ids, "attention_mask": mask}, block)
    bare_states = capture_site(model, anatomy, {"input_ids": ids}, block)
    pairs = [
        (m[1, :short_length], b[1, :short_length])
        for m, b in zip(masked_states, bare_states, strict=True)
    ]
    return not all(_is_close(state, reference) for state, reference in pairs)


def _is_close(found: Tensor, expected: Tensor) -> bool:
    """Tell whether both differ by rounding only: half of the digits agree."""
    digits = math.sqrt(torch.finfo(expected.dtype).eps)
    return bool((found - expected).abs().max() <= digits * expected.abs().max())


class _TracedLater:
    """A pass that is traced at its `TRACED_AFTER`-th use."""

    def __init__(self, model: Any, anatomy: Anatomy, masked: tuple[bool, ...]) -> None:
        """`masked`: the traces to try, with a mask or without, the better one first."""
        self._model, self._anatomy, self._masked = model, anatomy, masked
        self._passes = 0
        self._trace: TracedPass | None = None

    def once_more(self) -> TracedPass | None:
        """Count one more pass; return the trace for it, if there is one."""
        self._passes += 1
        if self._passes == TRACED_AFTER and is_plain(self._model):  # else edits stand beside
            traces = (traced(self._model, self._anatomy, masked=m) for m in self._masked)
            self._trace = next(filter(None, traces), None)
        return self._trace


class TracedPass:
    """A traced pass."""

    def __init__(self, model: Any, anatomy: Anatomy, *, masked: bool) -> None:
        """`masked`: the trace is given its causal mask."""
        self._mask: Callable[[int], Tensor] | None = None
        if masked:
            parameter = next(model.parameters())
            self._mask = cache(
                partial(_causal_mask, dtype=parameter.dtype, device=parameter.device)
            )
        module = _Captured(model, anatomy).eval()
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # about constants in a trace: `traced` checks these
            example = self._given(*_sample(model, *TRACED_SHAPE))
            run = torch.jit.trace(module, example, check_trace=False)
            self._run = torch.jit.freeze(run)  # no look-ups of the weights, which stay the model's

    def __call__(self, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result of `SitePass` for ids [B, T]."""
        unoptimized = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
        with torch.inference_mode(), unoptimized:
            query, hidden = self._run(*self._given(ids, rows))
        return query, hidden

    def _given(self, ids: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        return (ids, rows) if self._mask is None else (ids, rows, self._mask(ids.shape[1]))


def traced(model: Any, anatomy: Anatomy, *, masked: bool) -> TracedPass | None:
    """Trace the pass; None for a model that cannot be traced to the same bits."""
    try:
        trace = TracedPass(model, anatomy, masked=masked)
        is_same = all(_is_same(trace, model, anatomy, *_sample(model, *s)) for s in CHECKED_SHAPES)
    except Exception:  # a model may do anything that the tracer does not know
        return None
    return trace if is_same else None


class _Captured(nn.Module):
    """The pass as a module, for the tracer."""

    def __init__(self, model: Any, anatomy: Anatomy) -> None:
        super().__init__()
        self._model, self._anatomy = model, anatomy

    def forward(
        self, ids: Tensor, rows: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        inputs = {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask}
        return capture_answers(self._model, self._anatomy, inputs, rows)


def _causal_mask(tokens: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the mask to add to attention, [1, 1, T, T]: -inf where a token would look at a later
    one."""
    mask = torch.full((tokens, tokens), -torch.inf, dtype=dtype, device=device).triu(1)
    return mask[None, None]


def _sample(model: Any, sequences: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Return ids [sequences, tokens] that are not all alike, and every third position."""
    ids = sample_inputs(model, sequences * tokens)["input_ids"].view(sequences, tokens)
    return ids, torch.arange(0, ids.numel(), 3, device=ids.device)


def _is_same(trace: TracedPass, model: Any, anatomy: Anatomy, ids: Tensor, rows: Tensor) -> bool:
    site_rows = capture_answers(model, anatomy, {"input_ids": ids}, rows)
    return all(map(torch.equal, site_rows, trace(ids, rows)))
