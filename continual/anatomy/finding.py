"""Finds the anatomy of a model: its blocks, their FFN and the path to the logits, put together.

A model without an FFN in each block is found by its blocks, and one without blocks by the single
module that holds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from continual.anatomy.blocks import find_blocks, find_running_blocks, state_width, width_of
from continual.anatomy.ffn import find_ffn
from continual.anatomy.logit_path import find_logit_path
from continual.anatomy.module_paths import children_of, outermost_of, path_of
from continual.anatomy.observing import ModuleCalls, is_seq2seq, observe, sample_inputs
from continual.anatomy.overrides import WrongOverride, check_overrides, context_block, turn_tokens
from continual.anatomy.row_by_row import runs_row_by_row
from continual.anatomy.structure import Anatomy
from continual.errors import ModelError


def find_anatomy(
    model: Any,
    overrides: Mapping[str, str] | None = None,
    inputs: Mapping[str, Tensor] | None = None,
) -> Anatomy:
    """Find the anatomy of a transformers model in eval mode.

    ``overrides``: see ``OVERRIDES``. ``inputs``: the inputs of the one call of the model; a single
    token unless given. Raises ``ModelError``, which names the findings and the override that
    settles them.
    """
    names = dict(overrides or {})
    check_overrides(names)
    calls = observe(model, inputs or sample_inputs(model, 1))
    try:
        return _with_ffn(model, calls, names)
    except WrongOverride:
        raise
    except ModelError as refusal:
        if {"up", "down", "norm_after"} & names.keys():
            raise
        return _without_ffn(model, calls, names, refusal)


def _with_ffn(model: Any, calls: ModuleCalls, chosen: Mapping[str, str]) -> Anatomy:
    """Find the anatomy of a model with an FFN in each block. Raises ModelError for any other."""
    blocks = find_blocks(model, calls, chosen)
    ffn = find_ffn(model, blocks, calls, chosen)
    block = f"{blocks}.{len(children_of(model, blocks)) - 1}"
    way = find_logit_path(model, block, ffn.down, calls, chosen)
    anatomy = Anatomy(
        blocks=blocks,
        block_count=len(children_of(model, blocks)),
        width=ffn.width,
        ffn_width=ffn.ffn_width,
        up=ffn.up,
        down=ffn.down,
        transposed=ffn.transposed,
        norm_after=way.norm_after,
        final_norm=way.final_norm,
        head=way.head,
        tail=way.tail,
        encoder=_encoder(model),
    )
    return replace(
        anatomy,
        is_rowwise=runs_row_by_row(model, anatomy),
        context_block=context_block(chosen, anatomy.last),
        turn=turn_tokens(chosen),
    )


def _without_ffn(
    model: Any, calls: ModuleCalls, chosen: Mapping[str, str], refusal: ModelError
) -> Anatomy:
    """Find the anatomy of a model by its blocks alone. Raises the `refusal` of an FFN if there are
    no blocks."""
    blocks = find_running_blocks(model, calls, chosen)
    holders = [] if blocks or "blocks" in chosen else outermost_of(_holders(model, calls))
    holder = holders[-1] if holders else None
    path = blocks or holder
    if path is None:
        raise refusal
    count = len(children_of(model, blocks)) if blocks else 1
    end = f"{blocks}.{count - 1}" if blocks else path
    way = find_logit_path(model, end, None, calls, chosen)
    return Anatomy(
        blocks=path,
        block_count=count,
        width=width_of(end, calls),
        ffn_width=0,
        up=(),
        down=None,
        transposed=False,
        norm_after=None,
        final_norm=way.final_norm,
        head=way.head,
        tail=way.tail,
        encoder=_encoder(model),
        is_rowwise=False,
        no_ffn_site=str(refusal),
        is_one=blocks is None,
    )


def enclosing_modules(model: Any, anatomy: Anatomy) -> Iterator[Anatomy]:
    """Yield the anatomies of single modules that hold the blocks, the outermost first: the output
    of such a module is the place to edit."""
    calls = observe(model, sample_inputs(model, 1))
    for path in reversed(_holders(model, calls)):
        way = find_logit_path(model, path, None, calls, {})
        yield replace(
            anatomy,
            blocks=path,
            block_count=1,
            width=width_of(path, calls),
            ffn_width=0,
            up=(),
            down=None,
            final_norm=way.final_norm,
            head=way.head,
            tail=way.tail,
            is_one=True,
        )


def _holders(model: Any, calls: ModuleCalls) -> list[str]:
    """Return the modules that run once, give a state of each token, and have blocks inside; those
    that return later come later."""
    paths = [path for path, _ in calls]
    return [
        path
        for path, call in calls
        if path
        and paths.count(path) == 1
        and state_width(call)
        and any(_is_filled_list(part) for part in model.get_submodule(path).modules())
    ]


def _is_filled_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) > 0


def _encoder(model: Any) -> str | None:
    """Return the path of the encoder that the decoder attends to; None if there is none."""
    return path_of(model, model.get_encoder()) if is_seq2seq(model) else None
