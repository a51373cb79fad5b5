"""Reads the model at the tokens of edits' texts: keys before the matrix, hidden states behind a
block.

A decoder's state at a token does not depend on later tokens, so a pass reads a text up to that
token, and stops behind the block that is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from continual import hooks
from continual.locate_then_edit.edit_texts import EditTexts, LocatedText
from continual.passes.partial import logits_of
from continual.task_model import TaskModel
from continual.tasks import Encoding


@dataclass(frozen=True)
class Keys:
    """The inputs of one block's ``down`` at the tokens to write to; float32."""

    mean: Tensor  # [n, d_ff] over all prompts of an edit, by their shares (MEMIT, section 4.3.2)
    plain: Tensor  # [n, d_ff] in the bare prompt


def read_keys(task_model: TaskModel, batch: Sequence[EditTexts], block: int) -> Keys:
    """Read the keys of some edits at a block of the model as it stands."""
    texts = [text for edit_texts in batch for text in edit_texts.texts]
    down = task_model.edited.anatomy.down_module(task_model.edited.model, block)
    keys = _read(task_model, texts, block, down, takes_input=True)
    shares = torch.tensor([share for edit_texts in batch for share in edit_texts.shares]).to(keys)
    sizes = torch.tensor([len(edit_texts.texts) for edit_texts in batch], device=keys.device)
    owners = torch.arange(len(batch), device=keys.device).repeat_interleave(sizes)
    mean = keys.new_zeros(len(batch), keys.shape[1]).index_add_(0, owners, shares[:, None] * keys)
    return Keys(mean, keys[sizes.cumsum(0) - sizes])


def read_states(task_model: TaskModel, batch: Sequence[EditTexts], block: int) -> Tensor:
    """Read [n, d] float32: the residual sum of a block at the place of each bare prompt."""
    anatomy, model = task_model.edited.anatomy, task_model.edited.model
    texts = [edit_texts.texts[0] for edit_texts in batch]
    norm = anatomy.norm_after_module(model, block)
    if norm is None:
        return _read(task_model, texts, block, anatomy.block(model, block), takes_input=False)
    return _read(task_model, texts, block, norm, takes_input=True)


def _read(
    task_model: TaskModel,
    texts: Sequence[LocatedText],
    block: int,
    module: nn.Module,
    takes_input: bool,
) -> Tensor:
    """Read [texts, ·] float32: the input or the output of a module of the block, at the places."""
    reader = partial(_read_pass, task_model, block, module, takes_input)
    return torch.stack(task_model.in_passes(reader, [text.until_place() for text in texts]))


def _read_pass(
    task_model: TaskModel,
    block: int,
    module: nn.Module,
    takes_input: bool,
    encodings: Sequence[Encoding],
) -> tuple[Tensor, ...]:
    """Read the same in one pass: a row [·] at the last token of each encoding."""
    call = _last_call(task_model, encodings, block, module)
    states = call.input if takes_input else call.hidden
    rows = states.reshape(len(encodings), -1, states.shape[-1])  # some FFNs are given flat rows
    ends = torch.tensor([len(encoding.ids) - 1 for encoding in encodings])
    return rows[torch.arange(len(encodings)), ends].float().unbind()


@torch.no_grad()
def _last_call(
    task_model: TaskModel, encodings: Sequence[Encoding], block: int, module: nn.Module
) -> hooks.Call:
    """Return the last call of a module of a block, in a pass that ends with the block."""
    model, inputs = task_model.edited.model, task_model.inputs(encodings)
    with (
        hooks.captured(module) as calls,
        hooks.cut_short(task_model.edited.anatomy.block(model, block)),
    ):
        hooks.run_until_cut(lambda: logits_of(model, inputs))
    return calls[-1]
