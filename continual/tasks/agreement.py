"""Checks two properties of each model before it is edited.

Logits at a token depend on no later token, so that one teacher-forced pass judges a whole answer.
Padding changes nothing, so that many answers can be judged at a time. Knows a loaded model and the
padding of a task; no model by its name.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from continual.anatomy import sample_inputs
from continual.errors import ModelError
from continual.passes.partial import logits_of
from continual.storage import input_device
from continual.tasks import Encoding, Question, Task
from continual.tasks.sight import Sight

if TYPE_CHECKING:
    from continual.base import PretrainedBase

TOKENS = 11  # of a sequence
KEPT = 6  # tokens of it whose logits are compared
ROUNDINGS = 32  # of the number format: a pass over other tokens may sum in another order
PADDED = 5  # tokens of the shorter of two sequences


@torch.no_grad()
def require_looking_back(base: PretrainedBase) -> None:
    """Raise ModelError for a model whose logits at a token depend on later tokens. A model without
    logits at single tokens, which gives one answer for the whole input, may look at all of it."""
    model, inputs = base.model, _inputs(base)
    input_name = "decoder_input_ids" if _has_encoder(base) else "input_ids"
    altered_ids = inputs[input_name].clone()
    altered_ids[:, KEPT:] = altered_ids[:, :1]
    start = getattr(model.config, "decoder_start_token_id", None)
    if _has_encoder(base) and start is not None:  # a decoder may mask it, if it is the padding's
        inputs[input_name] = inputs[input_name].clone()
        inputs[input_name][:, 0] = altered_ids[:, 0] = start
    logits = logits_of(model, inputs)
    if logits.ndim == 2:
        return
    answers = logits_of(model, {**inputs, input_name: altered_ids})[:, :KEPT]
    logits = logits[:, :KEPT]
    eps = torch.finfo(logits.dtype).eps
    if not _is_close(answers, logits, min(math.sqrt(eps), ROUNDINGS * eps)):
        raise ModelError(
            f"{type(model).__name__} looks ahead: its answer at a token changes with the tokens "
            f"behind it ({_difference(answers, logits)}). A model that writes its answer token by "
            "token cannot do that. If it sorts texts into labels, use --task classification; if "
            "it is a decoder, set is_decoder in its config.json to true."
        )


@torch.no_grad()
def require_unmoved_by_padding(base: PretrainedBase, task: Task) -> None:
    """Raise ModelError for a model that answers a text otherwise with a longer one beside it."""
    sequences = [_encoding(base, size) for size in (TOKENS, PADDED)]
    batch_row = logits_of(base.model, _on_device(base, task.inputs(sequences)))[1]
    lone_row = logits_of(base.model, _on_device(base, task.inputs(sequences[1:])))[0]
    batch_row = batch_row[: len(lone_row)] if lone_row.ndim == 2 else batch_row
    if not _is_close(batch_row, lone_row, math.sqrt(torch.finfo(lone_row.dtype).eps)):
        raise ModelError(
            f"{type(base.model).__name__} answers a text otherwise when it is padded "
            f"({_difference(batch_row, lone_row)}), though the padding is masked: what it answers "
            "would depend on the texts that it is asked with. Models of this kind cannot be "
            "corrected."
        )


def require_seen(task: Task) -> None:
    """Raise ModelError for a model whose own forward sees pictures otherwise than the passes of
    its task. A task without pictures has nothing to check."""
    sight = getattr(task, "sight", None)
    if isinstance(sight, Sight):
        sight.require_agreement()


def _has_encoder(base: PretrainedBase) -> bool:
    return base.anatomy.encoder is not None


def _inputs(base: PretrainedBase) -> dict[str, Tensor]:
    return sample_inputs(base.model, min(TOKENS, base.context_tokens_max or TOKENS))


def _encoding(base: PretrainedBase, length: int) -> Encoding:
    ids = tuple(_inputs(base)["input_ids"][0, -length:].tolist())
    question = Question(ids)
    return Encoding(replace(question, source=ids) if _has_encoder(base) else question, (), ())


def _on_device(base: PretrainedBase, inputs: dict[str, Tensor]) -> dict[str, Any]:
    device = input_device(base.model)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _is_close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    difference = (found.float() - expected.float()).abs().max()
    return bool(difference <= tolerance * expected.float().abs().max())


def _difference(found: Tensor, expected: Tensor) -> str:
    difference = (found.float() - expected.float()).abs().max().item()
    return f"its logits by {difference:.2g}, of at most {expected.abs().max().item():.2g}"
