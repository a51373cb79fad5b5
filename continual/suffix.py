"""Runs the ends of sequences, from a position of each on, with all before it kept.

A decoder's states at a position depend on nothing behind it. What changes at one token therefore
moves only that token and those behind it: the keys and values that attention has of the tokens
before are kept in the model's own cache, and only the ends go through the blocks.

The sequences are set so that all their ends begin in one column, with padding before and behind.
Knows transformers' cache; leaves what changes to its callers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from continual import hooks
from continual.anatomy import Anatomy, sample_inputs
from continual.batching import by_length
from continual.errors import ModelError
from continual.partial import BlockCall, Recording, sums_from

SAMPLE_TOKENS = 6
PREFIX_TOKENS_MAX = 2048  # of a pass
PADDED_MAX = 1.5  # the longest sequence of a pass, in the length of its shortest
TOLERANCE = 1e-3  # of the largest value: a kept prefix that is read wrongly is off by far more


@dataclass(frozen=True)
class Ends:
    """Sequences of token ids, and the position in each where its end begins."""

    ids: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]


class EndPass:
    """The ends of some sequences, recorded at one block."""

    def __init__(self, model: Any, anatomy: Anatomy, ends: Ends, block: int, pad: int) -> None:
        """One pass over all before the ends and one over the ends, without gradients."""
        self._model, self._anatomy, self._block = model, anatomy, block
        batch = _Batch.of(ends, pad, model.get_input_embeddings().weight.device)
        with torch.no_grad():
            self._cache = _kept(model, anatomy, batch, ends.starts)
            self._prefix = [(layer.keys, layer.values) for layer in self._layers()]
            self._calls, self.sums = self._recorded(batch)

    def select(self, rows: Tensor) -> EndPass:
        """The same for some of the sequences: nothing is run again."""
        chosen = copy.copy(self)
        count = len(self.sums)
        chosen.sums = self.sums[rows]
        chosen._prefix = [(keys[rows], values[rows]) for keys, values in self._prefix]
        chosen._calls = tuple(
            replace(
                call,
                args=_selected(call.args, rows, count),
                kwargs=_selected(call.kwargs, rows, count),
            )
            for call in self._calls
        )
        return chosen

    def last_sums(self, sums: Tensor) -> Tensor:
        """The residual sums [B, S, d] of the last block, from those of the recorded one."""
        anatomy = self._anatomy
        if self._block == anatomy.last:
            return sums
        self._rewind()
        norm = anatomy.norm_after_module(self._model, self._block)
        above = self._block + 1
        hidden = {above: sums if norm is None else norm(sums)}
        recording = Recording({}, self._calls, hidden, None)
        return sums_from(self._model, anatomy, recording, above)

    def answers(self, sums: Tensor, rows: Tensor) -> Tensor:
        """[n, d] the same for some positions alone, counted through the ends: the last FFN runs for
        these only, as nothing behind it looks at any other."""
        anatomy = self._anatomy
        if self._block == anatomy.last:
            last = sums
        else:
            entries = anatomy.up_modules(self._model, anatomy.last)
            with hooks.narrowed(entries, anatomy.down_module(self._model, anatomy.last), rows):
                last = self.last_sums(sums)
        return last.reshape(-1, anatomy.width).index_select(0, rows)

    def _layers(self) -> list[Any]:
        return [] if self._cache is None else list(self._cache.layers)

    def _rewind(self) -> None:
        """The cache without what the ends have put into it."""
        for layer, (keys, values) in zip(self._layers(), self._prefix, strict=True):
            layer.keys, layer.values = keys, values

    def _recorded(self, batch: _Batch) -> tuple[tuple[BlockCall, ...], Tensor]:
        """How the blocks were called for the ends, and the residual sums [B, S, d] of the one that
        is recorded. Those above it are called and not run: what they give is asked for later."""
        model, anatomy = self._model, self._anatomy
        calls: list[BlockCall] = []
        passed = _Passed()
        every = {index: anatomy.block(model, index) for index in range(anatomy.block_count)}
        norm = anatomy.norm_after_module(model, self._block)
        with (
            ExitStack() as stack,
            hooks.captured(every[self._block] if norm is None else norm) as sums,
            hooks.watched(every, lambda _, call: calls.append(BlockCall.of(call))),
            hooks.watched({self._block: every[self._block]}, passed.see),
            hooks.cut_short(every[anatomy.last]),
        ):
            for index in range(self._block + 1, anatomy.block_count):
                stack.enter_context(hooks.bypassed(every[index], passed))
            hooks.run_until_cut(
                lambda: _run(model, batch.ends(), self._cache, keeps=self._cache is not None)
            )
        found = sums[0].hidden if norm is None else sums[0].input
        return tuple(calls), found.reshape(len(batch.ids), -1, anatomy.width)


class _Passed:
    """Stands in for a block: gives back what it is given, in the form that another block has
    returned it in."""

    def __init__(self) -> None:
        self._returned: Any = None

    def see(self, _: int, call: hooks.Call) -> None:
        """That block's call."""
        self._returned = call.output

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hidden = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        return hooks.with_hidden(self._returned, hidden)


def _selected(value: Any, rows: Tensor, count: int) -> Any:
    """What a block was called with, for some of `count` sequences: of tensors that have one row or
    more for each, these rows. A vector has none: it tells positions."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim > 1 and len(value) == count else value
    if isinstance(value, tuple | list):
        return type(value)(_selected(part, rows, count) for part in value)
    if isinstance(value, Mapping):
        return {name: _selected(part, rows, count) for name, part in value.items()}
    return value


def keeps_prefixes(model: Any, anatomy: Anatomy) -> bool:
    """Whether the ends of a model's sequences come out as in passes over the whole, all of them
    and some of them: seen on three."""
    sample = tuple(sample_inputs(model, SAMPLE_TOKENS)["input_ids"][0].tolist())
    ends = Ends((sample, sample[1:-1], sample[2:]), (3, 1, 2))
    chosen = torch.tensor([2, 0], device=model.get_input_embeddings().weight.device)
    try:
        every = EndPass(model, anatomy, ends, 0, pad=sample[0])
        some = every.select(chosen)
        with torch.no_grad():
            found = torch.cat([every.last_sums(every.sums), some.last_sums(some.sums)])
    except (ModelError, TypeError, ValueError, AttributeError, RuntimeError, IndexError):
        return False
    return all(
        _is_close(
            found[row, : len(ends.ids[i]) - ends.starts[i]],
            _whole(model, anatomy, ends.ids[i])[ends.starts[i] :],
        )
        for row, i in enumerate([0, 1, 2, *chosen.tolist()])
    )


def _whole(model: Any, anatomy: Anatomy, ids: Sequence[int]) -> Tensor:
    """[T, d] the residual sums of the last block in a pass over one sequence."""
    given = torch.tensor([list(ids)], device=model.get_input_embeddings().weight.device)
    norm = anatomy.norm_after_module(model, anatomy.last)
    module = anatomy.block(model, anatomy.last) if norm is None else norm
    with torch.no_grad(), hooks.captured(module) as calls:
        model(input_ids=given, use_cache=False, return_dict=True)
    found = calls[0].hidden if norm is None else calls[0].input
    return found.reshape(len(ids), anatomy.width)


def _is_close(found: Tensor, expected: Tensor) -> bool:
    error = (found.float() - expected.float()).abs().max()
    roundings = 8 * torch.finfo(expected.dtype).eps
    return bool(error <= max(TOLERANCE, roundings) * expected.float().abs().max())


# --- the batch ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    """Sequences in columns: the beginnings end, and the ends begin, in column `start`."""

    ids: Tensor  # [B, T]
    mask: Tensor  # [B, T] 1 where there is a token
    positions: Tensor  # [B, T]
    start: int

    @classmethod
    def of(cls, ends: Ends, pad: int, device: torch.device) -> _Batch:
        start = max(ends.starts)
        size = start + max(len(i) - s for i, s in zip(ends.ids, ends.starts, strict=True))
        ids = torch.full((len(ends.ids), size), pad)
        mask = torch.zeros_like(ids)
        for row, (sequence, first) in enumerate(zip(ends.ids, ends.starts, strict=True)):
            place = slice(start - first, start - first + len(sequence))
            ids[row, place] = torch.tensor(sequence)
            mask[row, place] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return cls(ids.to(device), mask.to(device), positions.to(device), start)

    def beginnings(self, rows: Sequence[int], size: int) -> dict[str, Tensor]:
        """The inputs of a pass over what is before the ends of some sequences, `size` tokens at
        most."""
        place = (list(rows), slice(self.start - size, self.start))
        return {
            "input_ids": self.ids[place],
            "attention_mask": self.mask[place],
            "position_ids": self.positions[place],
        }

    def ends(self) -> dict[str, Tensor]:
        """The inputs of a pass over the ends, behind the beginnings."""
        if self.start == 0:
            return {"input_ids": self.ids, "attention_mask": self.mask}
        rest = slice(self.start, None)
        return {
            "input_ids": self.ids[:, rest],
            "attention_mask": self.mask,
            "position_ids": self.positions[:, rest],
        }


def _kept(model: Any, anatomy: Anatomy, batch: _Batch, starts: Sequence[int]) -> Any:
    """The model's cache of all before the ends; None where there is nothing before them. What
    comes behind the last block's attention is left out: nobody looks at it.

    Sequences of nearly one length are run together: at the end each stands before its own end, and
    before it there is room.
    """
    if batch.start == 0:
        return None
    cache: Any = None
    whole: list[tuple[Tensor, Tensor]] = []
    begun = [row for row, start in enumerate(starts) if start]
    lengths = [starts[row] for row in begun]
    for places in by_length(lengths, PREFIX_TOKENS_MAX, PADDED_MAX):
        rows = [begun[place] for place in places]
        size = starts[rows[-1]]
        cache = DynamicCache(config=model.config.get_text_config())
        with hooks.cut_short(anatomy.up_modules(model, anatomy.last)[0]):
            given = batch.beginnings(rows, size)
            hooks.run_until_cut(partial(_run, model, given, cache, keeps=True))
        found = [(layer.keys, layer.values) for layer in cache.layers]
        if not whole:
            whole = [(_room(k, batch), _room(v, batch)) for k, v in found]
        for filled, part in zip(whole, found, strict=True):
            for into, some in zip(filled, part, strict=True):
                into[rows, :, batch.start - size :] = some
    for layer, (keys, values) in zip(cache.layers, whole, strict=True):
        layer.keys, layer.values = keys, values
    return cache


def _room(kept: Tensor, batch: _Batch) -> Tensor:
    """Zeros [B, heads, start, d], for what attention keeps of a few of the sequences."""
    return kept.new_zeros(len(batch.ids), kept.shape[1], batch.start, kept.shape[3])


def _run(model: Any, inputs: dict[str, Tensor], cache: Any, keeps: bool) -> Any:
    """A pass that goes on from a cache, and keeps one or not.

    Raises ModelError for a model that is not told where its tokens stand.
    """
    known = inspect.signature(model.forward).parameters
    if "position_ids" in inputs and "position_ids" not in known:
        raise ModelError(f"{type(model).__name__} takes no position_ids.")
    return model(**inputs, past_key_values=cache, use_cache=keeps, return_dict=True)
