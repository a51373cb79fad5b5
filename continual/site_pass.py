"""The pass that shows a single sequence at the last FFN, made as cheap as it can be.

Small passes spend a third of their time on the way from module to module. So after some dozens the
pass is traced, and the trace takes over if it gives the very bits of the model's own modules, for
sequences of other lengths too; otherwise they go on. Weights that are edited in place act in both.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from continual.anatomy import Anatomy, sample_inputs
from continual.partial import capture_site

TRACED_AFTER = 32  # passes: tracing costs about as much as it spares in a hundred
TRACED_LENGTH = 12
CHECKED_LENGTHS = (1, 2, 7, 31)  # tokens


class SitePass:
    """Query and residual sum at the last FFN, [B, T, d] each, without gradients."""

    def __init__(self, model: Any, anatomy: Anatomy) -> None:
        self._model, self._anatomy = model, anatomy
        self._passes = 0  # of single sequences
        self._trace: Any = None

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """As `capture_site`, with the same bits."""
        if set(inputs) != {"input_ids"} or len(inputs["input_ids"]) > 1:
            return self._own(inputs)
        self._passes += 1
        if self._passes == TRACED_AFTER:
            self._trace = _trace(self._model, self._anatomy)
        if self._trace is None:
            return self._own(inputs)
        return _run(self._trace, inputs["input_ids"])

    def _own(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return capture_site(self._model, self._anatomy, inputs, self._anatomy.last)


class _Captured(nn.Module):
    """The pass as a module, for the tracer."""

    def __init__(self, model: Any, anatomy: Anatomy) -> None:
        super().__init__()
        self._model, self._anatomy = model, anatomy

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return capture_site(self._model, self._anatomy, {"input_ids": ids}, self._anatomy.last)


def _trace(model: Any, anatomy: Anatomy) -> Any:
    """The traced pass, or None for a model that cannot be traced to the same bits."""
    try:
        ids = sample_inputs(model, TRACED_LENGTH)["input_ids"]
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of what is constant in a trace: it is checked below
            trace = torch.jit.trace(_Captured(model, anatomy).eval(), ids, check_trace=False)
        same = all(_is_same(trace, model, anatomy, length) for length in CHECKED_LENGTHS)
    except Exception:  # whatever a model does that the tracer does not know
        return None
    return trace if same else None


def _is_same(trace: Any, model: Any, anatomy: Anatomy, length: int) -> bool:
    inputs = sample_inputs(model, length)
    own = capture_site(model, anatomy, inputs, anatomy.last)
    return all(map(torch.equal, own, _run(trace, inputs["input_ids"])))


def _run(trace: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    as_written = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    with torch.inference_mode(), as_written:
        query, hidden = trace(ids)
    return query, hidden
