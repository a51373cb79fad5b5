"""What the model has where lessons write: keys at the matrix, hidden states behind a block.

A decoder's state at a token depends on nothing behind it, so a pass reads a text up to that token,
and through the last block that is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from continual import hooks
from continual.associative.lessons import Lesson, Text
from continual.passes.partial import logits_of
from continual.site import Site
from continual.task_model import length_sorted
from continual.tasks import Encoding


@dataclass(frozen=True)
class Keys:
    """The inputs of one block's ``down`` at the token that is written to; float32."""

    mean: Tensor  # [n, d_ff] over all texts of a lesson, by their shares (MEMIT, section 4.3.2)
    plain: Tensor  # [n, d_ff] in the bare prompt


def read_keys(site: Site, lessons: Sequence[Lesson], block: int) -> Keys:
    """The keys of some lessons at a block, as the model stands."""
    texts = [text for lesson in lessons for text in lesson.texts]
    down = site.edited.anatomy.down_module(site.edited.model, block)
    keys = _read(site, texts, block, down, takes_input=True)
    shares = torch.tensor([share for lesson in lessons for share in lesson.shares]).to(keys)
    sizes = torch.tensor([len(lesson.texts) for lesson in lessons], device=keys.device)
    owners = torch.arange(len(lessons), device=keys.device).repeat_interleave(sizes)
    mean = keys.new_zeros(len(lessons), keys.shape[1]).index_add_(0, owners, shares[:, None] * keys)
    return Keys(mean, keys[sizes.cumsum(0) - sizes])


def read_states(site: Site, lessons: Sequence[Lesson], block: int) -> Tensor:
    """[n, d] float32: the residual sum of a block at the place of each bare prompt."""
    anatomy, model = site.edited.anatomy, site.edited.model
    texts = [lesson.texts[0] for lesson in lessons]
    norm = anatomy.norm_after_module(model, block)
    if norm is None:
        return _read(site, texts, block, anatomy.block(model, block), takes_input=False)
    return _read(site, texts, block, norm, takes_input=True)


def _read(
    site: Site, texts: Sequence[Text], block: int, module: nn.Module, takes_input: bool
) -> Tensor:
    """[texts, ·] float32: what goes into a module of the block, or comes out, at the places."""
    encodings = [text.until_place() for text in texts]
    places = torch.tensor([text.place for text in texts])
    order: list[int] = []
    found: list[Tensor] = []
    for batch in length_sorted(encodings):
        call = _last_call(site, [encodings[i] for i in batch], block, module)
        seen = call.input if takes_input else call.hidden
        rows = seen.reshape(len(batch), -1, seen.shape[-1])  # some blocks give their FFN flat rows
        found.append(rows[torch.arange(len(batch)), places[batch]].float())
        order += batch
    return torch.cat(found)[torch.tensor(order).argsort()]


@torch.no_grad()
def _last_call(
    site: Site, encodings: Sequence[Encoding], block: int, module: nn.Module
) -> hooks.Call:
    """The call of a module of a block, in a pass that ends with the block."""
    model, inputs = site.edited.model, site.inputs(encodings)
    with (
        hooks.captured(module) as calls,
        hooks.cut_short(site.edited.anatomy.block(model, block)),
    ):
        hooks.run_until_cut(lambda: logits_of(model, inputs))
    return calls[-1]
