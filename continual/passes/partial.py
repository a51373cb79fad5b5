"""Runs a model in parts: block to block on kept hidden states, and up to the last FFN site.

- ``record`` keeps each block's call in one forward pass, and the hidden states asked for
- ``run`` takes hidden states through some of the blocks, ``finish`` from the last one to the logits
- ``rows_from`` gives queries and residual sums at the last FFN from recorded states on
- ``capture_answers`` gives them for some positions in one pass, and runs the last FFN for no other
- ``capture_rows`` gives queries, residual sums and logits in one pass, ``capture_site`` all but the
  logits, for less

``run`` and ``finish`` go through the model's own code and equal its forward bit for bit. Patches
that are on the model act in all of them. Knows nothing of edits. Leaves the logits of single
positions to ``row_tail``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from continual import hooks
from continual.anatomy import Anatomy
from continual.effects.context import Window, means_of, sums_of, with_context


@dataclass(frozen=True)
class BlockCall:
    """A block's call: its arguments without the hidden state, and the form of its output."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    by_name: bool  # the hidden state was given as ``hidden_states=``
    returned: int | type[ModelOutput] | None  # so many values, or this output; None: a bare tensor

    @classmethod
    def of(cls, call: hooks.Call) -> BlockCall:
        """Keep the needed parts of an observed call."""
        kwargs = {name: value for name, value in call.kwargs.items() if name != "hidden_states"}
        returned: int | type[ModelOutput] | None = None
        if isinstance(call.output, ModelOutput):
            returned = type(call.output)
        elif not isinstance(call.output, Tensor):
            returned = len(call.output)
        return cls(call.args[1:], kwargs, not call.args, returned)

    def replay(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Call the block with another hidden state; return its output state."""
        if self.by_name:
            return hooks.hidden_of(block(*self.args, hidden_states=hidden, **self.kwargs))
        return hooks.hidden_of(block(hidden, *self.args, **self.kwargs))

    def output(self, hidden: Tensor) -> Any:
        """Return ``hidden`` in the form in which the block returns it."""
        if self.returned is None:
            return hidden
        if not isinstance(self.returned, int):
            return self.returned(hidden)
        return (hidden, *[None] * (self.returned - 1))


@dataclass(frozen=True)
class Recording:
    """One forward pass, to be run again in parts; the batch is part of it.

    ``hidden`` holds the states [B, T, d] that enter the blocks asked for, and at ``block_count``
    the state that leaves the last block. ``context`` is of the queries at the last FFN, if any.
    """

    inputs: Mapping[str, Tensor]
    calls: tuple[BlockCall, ...]
    hidden: Mapping[int, Tensor]
    encoded: Any  # the encoder's output; None without an encoder
    context: Tensor | None = None  # [B, T, d]


@dataclass(frozen=True)
class SiteCapture:
    """The states at one FFN site that a patch starts from, and the logits."""

    query: Tensor  # [B, T, d] the input of the FFN, without a context
    hidden: Tensor  # [B, T, d] residual + FFN output, before any norm
    logits: Tensor  # [B, T, vocab], or [B, labels]


def logits_of(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the logits of a plain forward pass without a cache."""
    logits = model(**inputs, use_cache=False, return_dict=True).logits
    assert isinstance(logits, Tensor)
    return logits


@torch.no_grad()
def record(
    model: Any, anatomy: Anatomy, inputs: Mapping[str, Tensor], blocks: Iterable[int]
) -> Recording:
    """Record one forward pass for ``run`` and ``finish``; ``blocks`` are the keys of ``hidden``."""
    indices = set(blocks)
    calls: list[BlockCall] = []
    hidden: dict[int, Tensor] = {}
    encoder_outputs: list[Any] = []

    def see(index: int, call: hooks.Call) -> None:
        calls.append(BlockCall.of(call))
        if index in indices:
            hidden[index] = call.input
        if index == anatomy.last and anatomy.block_count in indices:
            hidden[anatomy.block_count] = call.hidden

    def see_encoder(_: str, call: hooks.Call) -> None:
        encoder_outputs.append(call.output)

    modules = {index: anatomy.block(model, index) for index in range(anatomy.block_count)}
    with (
        hooks.watched(modules, see),
        hooks.watched(_encoders(model, anatomy), see_encoder),
        _context_observed(model, anatomy, inputs) as context,
    ):
        logits_of(model, inputs)
    return Recording(
        dict(inputs),
        tuple(calls),
        hidden,
        encoder_outputs[0] if encoder_outputs else None,
        context(),
    )


def run(
    model: Any, anatomy: Anatomy, recording: Recording, hidden: Tensor, first: int, last: int
) -> Tensor:
    """Return the state that leaves block ``last - 1`` if ``hidden`` [B, T, d] enters block
    ``first``."""
    for index in range(first, last):
        hidden = recording.calls[index].replay(anatomy.block(model, index), hidden)
    return hidden


def finish(model: Any, anatomy: Anatomy, recording: Recording, hidden: Tensor) -> Tensor:
    """Return the logits if ``hidden`` [B, T, d] leaves the last block.

    Runs the model's own forward, with stand-ins for its blocks and its encoder.
    """
    with ExitStack() as stack:
        for index, call in enumerate(recording.calls):
            stand_in = _returning(call.output(hidden))
            stack.enter_context(hooks.bypassed(anatomy.block(model, index), stand_in))
        for encoder in _encoders(model, anatomy).values():
            stack.enter_context(hooks.bypassed(encoder, _returning(recording.encoded)))
        return logits_of(model, recording.inputs)


@torch.no_grad()
def capture_rows(
    model: Any, anatomy: Anatomy, inputs: Mapping[str, Tensor], block: int
) -> SiteCapture:
    """Capture query and residual sum at one block's FFN site, and the logits, in one forward pass.

    At the last block, adding p to the output of ``down`` gives the logits of ``hidden + p``.
    """
    with _site_observed(model, anatomy, block) as site_states:
        logits = logits_of(model, inputs)
    return SiteCapture(*site_states(), logits)


@torch.inference_mode()
def capture_site(
    model: Any, anatomy: Anatomy, inputs: Mapping[str, Tensor], block: int
) -> tuple[Tensor, Tensor]:
    """Capture query and residual sum as ``capture_rows``, by a forward pass that ends with the
    block."""
    with (
        _site_observed(model, anatomy, block) as site_states,
        _context_observed(model, anatomy, inputs) as context,
        hooks.cut_short(anatomy.block(model, block)),
    ):
        hooks.run_until_cut(lambda: logits_of(model, inputs))
    shape = (next(iter(inputs.values())).shape[0], -1, anatomy.width)  # a tracer follows shapes
    # some blocks give their FFN flat rows
    query, hidden = (states.reshape(shape) for states in site_states())
    if (beside := context()) is not None and block == anatomy.last:
        query = with_context(query, beside)
    return query, hidden


@torch.inference_mode()
def capture_answers(
    model: Any, anatomy: Anatomy, inputs: Mapping[str, Tensor], rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Capture query and residual sum [n, d] at the last FFN site, for n positions of the batch,
    counted through its sequences.

    If the last FFN works row by row, it runs for these positions alone: nothing behind it looks at
    any other.
    """
    block = anatomy.last
    if not anatomy.is_rowwise:
        query, hidden = capture_site(model, anatomy, inputs, block)
        size = (-1, anatomy.width)
        return query.reshape(size).index_select(0, rows), hidden.reshape(size).index_select(0, rows)
    entries = anatomy.up_modules(model, block)
    with (
        _site_observed(model, anatomy, block) as site_states,
        _context_observed(model, anatomy, inputs) as context,
        hooks.narrowed(entries, anatomy.down_module(model, block), rows),
        hooks.cut_short(anatomy.block(model, block)),
    ):
        hooks.run_until_cut(lambda: logits_of(model, inputs))
    query, hidden = site_states()
    if (beside := context()) is not None:
        query = with_context(query, beside.reshape(-1, anatomy.width).index_select(0, rows))
    return query, hidden.reshape(-1, anatomy.width).index_select(0, rows)


def rows_from(
    model: Any, anatomy: Anatomy, recording: Recording, block: int
) -> tuple[Tensor, Tensor]:
    """Return query and residual sum [B, T, d] at the last FFN site, as ``capture_site``, from the
    recorded states that enter ``block`` on."""
    with (
        _site_observed(model, anatomy, anatomy.last) as site_states,
        _context_observed(model, anatomy, recording.inputs) as context,
    ):
        run(model, anatomy, recording, recording.hidden[block], block, anatomy.block_count)
    shape = (*recording.hidden[block].shape[:-1], anatomy.width)
    query, hidden = (states.reshape(shape) for states in site_states())
    beside = recording.context if block > (anatomy.context_block or 0) else context()
    return query if beside is None else with_context(query, beside), hidden


def sums_from(model: Any, anatomy: Anatomy, recording: Recording, block: int) -> Tensor:
    """Return the residual sum [B, T, d] of ``rows_from`` alone."""
    with _site_observed(model, anatomy, anatomy.last) as site_states:
        run(model, anatomy, recording, recording.hidden[block], block, anatomy.block_count)
    return site_states()[1].reshape(*recording.hidden[block].shape[:-1], anatomy.width)


@contextmanager
def _site_observed(
    model: Any, anatomy: Anatomy, block: int
) -> Iterator[Callable[[], tuple[Tensor, Tensor]]]:
    """Observe a forward pass within ``with``; the function returned gives query and residual sum at
    the site of a block."""
    with (
        _queries_observed(model, anatomy, block) as query,
        sums_observed(model, anatomy, block) as sums,
    ):
        yield lambda: (query(), sums())


@contextmanager
def _queries_observed(model: Any, anatomy: Anatomy, block: int) -> Iterator[Callable[[], Tensor]]:
    """Observe a forward pass within ``with``; the function returned gives the query at the site of
    a block, as gates read it: an output is read before values land on it."""
    if anatomy.is_at_ffn:
        with hooks.captured(anatomy.query_module(model, block)) as calls:
            yield lambda: calls[0].input
        return
    outputs: list[Tensor] = []
    modules = {0: anatomy.block(model, block)}
    with hooks.watched(modules, lambda _, call: outputs.append(call.hidden), first=True):
        yield lambda: outputs[0]


@contextmanager
def _context_observed(
    model: Any, anatomy: Anatomy, inputs: Mapping[str, Tensor]
) -> Iterator[Callable[[], Tensor | None]]:
    """Observe a forward pass without a cache within ``with``; the function returned gives the
    context [B, T, d] of queries at the last FFN, None if they have none."""
    if anatomy.context_block is None:
        yield lambda: None
        return
    with hooks.captured(anatomy.query_module(model, anatomy.context_block)) as calls:
        window = Window(anatomy.turn)
        mask = window.counted(inputs.get("attention_mask"), inputs.get("input_ids"))
        shape = (next(iter(inputs.values())).shape[0], -1, anatomy.width)  # as in `capture_site`
        yield (
            lambda: (
                means_of(sums_of(calls[0].input.reshape(shape), mask), window) if calls else None
            )
        )


@contextmanager
def sums_observed(model: Any, anatomy: Anatomy, block: int) -> Iterator[Callable[[], Tensor]]:
    """Observe a forward pass within ``with``; the function returned gives the residual sum of a
    block, in the pass's own shape."""
    norm = anatomy.norm_after_module(model, block)
    with hooks.captured(anatomy.block(model, block) if norm is None else norm) as calls:
        yield lambda: calls[0].hidden if norm is None else calls[0].input


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _encoders(model: nn.Module, anatomy: Anatomy) -> dict[str, nn.Module]:
    """Return the encoder by its path; empty if there is none."""
    return {path: model.get_submodule(path) for path in [anatomy.encoder] if path is not None}
