"""Runs the ends of sequences, from a position of each on, with all before it kept.

A decoder's states at a position depend on nothing behind it. A change at one token therefore moves
only that token and the later ones: attention's keys and values of the tokens before are kept, and
only the ends go through the blocks, packed into one row without padding (`PackedEnds`). A model
whose attention cannot be run in this way goes over its whole sequences each time
(`WholeSequences`).

Knows the calls of transformers' models; leaves the changes to its callers.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from continual import hooks
from continual.anatomy import Anatomy, sample_inputs
from continual.errors import ModelError
from continual.passes.batching import by_length
from continual.passes.packing import GroupKeyValues, Packing, SequenceLengths, attend
from continual.passes.partial import BlockCall, Recording, record, sums_from, sums_observed
from continual.storage import input_device

SAMPLE_TOKENS = 6
WHOLE_TOKENS_MAX = 4095  # of a pass that is recorded, on a CPU
ACCELERATED_TOKENS_MAX = 32_768
WHOLE_PADDED_MAX = 1.25  # in attention, see `PackedEnds`
ATTENTIONS = frozenset({"full_attention", "sliding_attention"})
UNKNOWN = ("softcap", "s_aux", "position_bias")
"""Arguments of an attention function that `attend` does not support."""
TOLERANCE = 1e-3  # of the largest value: a kept prefix that is read wrongly is off by far more


@dataclass(frozen=True)
class Ends:
    """Sequences of token ids, and the position in each where its end begins."""

    ids: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]

    def __getitem__(self, chosen: Sequence[int]) -> Ends:
        return Ends(tuple(self.ids[i] for i in chosen), tuple(self.starts[i] for i in chosen))

    def end(self, sequence: int) -> tuple[Sequence[int], Sequence[int]]:
        """Return the tokens of an end, and their positions in the sequence."""
        ids, start = self.ids[sequence], self.starts[sequence]
        return ids[start:], range(start, len(ids))

    @property
    def lengths(self) -> SequenceLengths:
        """The numbers of tokens in the ends, and before them."""
        sizes = (len(ids) - start for ids, start in zip(self.ids, self.starts, strict=True))
        return SequenceLengths(tuple(sizes), self.starts)


class EndPass(ABC):
    """The ends of some sequences, recorded at one block: a row for each token that is run."""

    sums: Tensor  # [R, d] the residual sums of the block

    def __init__(self, model: Any, anatomy: Anatomy, block: int) -> None:
        self._model, self._anatomy, self._block = model, anatomy, block

    @abstractmethod
    def row(self, sequences: Tensor, positions: Tensor) -> Tensor:
        """Return the rows of tokens, by their sequences and their positions in the ends."""

    @abstractmethod
    def _above(self, hidden: Tensor) -> Tensor:
        """Return the residual sums [R, d] of the last block, from the states that enter the block
        above the recorded one."""

    def last_sums(self, sums: Tensor) -> Tensor:
        """Return the residual sums [R, d] of the last block, from the recorded block's."""
        if self._block == self._anatomy.last:
            return sums
        norm = self._anatomy.norm_after_module(self._model, self._block)
        return self._above(sums if norm is None else norm(sums))

    def answers(self, sums: Tensor, rows: Tensor) -> Tensor:
        """Return the residual sums [n, d] of the last block for some rows. The last FFN runs for
        these only, as nothing behind it looks at any other."""
        anatomy = self._anatomy
        if self._block == anatomy.last:
            return sums.index_select(0, rows)
        if not anatomy.is_rowwise:
            return self.last_sums(sums).index_select(0, rows)
        entries = anatomy.up_modules(self._model, anatomy.last)
        with hooks.narrowed(entries, anatomy.down_module(self._model, anatomy.last), rows):
            return self.last_sums(sums).index_select(0, rows)


class PackedEnds(EndPass):
    """The ends in one row, behind keys and values that are kept."""

    def __init__(
        self, model: Any, anatomy: Anatomy, ends: Ends, block: int, padded_max: float
    ) -> None:
        """Run whole sequences once, without gradients; in attention, sequences of like lengths are
        padded to at most `padded_max` times the length of the shortest.

        Raises ModelError for a model with another attention than `attend`, or without position ids.
        """
        super().__init__(model, anatomy, block)
        self.windows: set[int | None] = set()  # the windows that attention was called with
        self._ends = ends
        self._blocks = _blocks_by_module(model, anatomy)
        device = input_device(model)
        self._packing = Packing.of(ends.lengths, padded_max, device)
        with torch.no_grad():
            self._record(device)

    def _record(self, device: torch.device) -> None:
        ends, packing = self._ends, self._packing
        recorder = _Recorder(self._model, self._anatomy, self._block, self._blocks)
        begin = recorder.read(ends.ids, device) + torch.tensor(ends.starts)
        self.sums, self._form = recorder.sums()[packing.tokens(begin)], recorder.form
        places = [
            (begin[sequences][:, None] + torch.arange(-group.room, 0)).clamp(min=0).to(device)
            for group, sequences in packing.members()
        ]
        self._kept = {
            block: [
                GroupKeyValues.of(keys, values, room_places, group)
                for room_places, group in zip(places, packing.groups, strict=True)
            ]
            for block, keys, values in recorder.kept()
        }
        self._calls = self._called()

    def row(self, sequences: Tensor, positions: Tensor) -> Tensor:
        """See `EndPass`."""
        return self._packing.row(sequences, positions)

    def select(self, chosen: Sequence[int]) -> PackedEnds:
        """Return the pass of some of the sequences, without running any again."""
        selection = copy.copy(self)
        selection._ends = self._ends[chosen]
        selection._packing, members = self._packing.select(chosen)
        selection.sums = self.sums[selection._packing.tokens(self._packing.firsts(chosen))]
        selection._kept = {
            block: list(_selected(states, members, self._packing, selection._packing))
            for block, states in self._kept.items()
        }
        selection._calls = selection._called()
        return selection

    def _above(self, hidden: Tensor) -> Tensor:
        upper_block = self._block + 1
        recording = Recording({}, self._calls, {upper_block: hidden[None]}, None)
        with hooks.attending(self._model, self._attend):
            return sums_from(self._model, self._anatomy, recording, upper_block).squeeze(0)

    def _attend(self, asked: hooks.AttentionCall) -> Tensor:
        states = self._kept[self._blocks[id(asked.module)]]
        self.windows.add(asked.told.get("sliding_window"))
        return attention(asked, self._packing, states)

    def _called(self) -> tuple[BlockCall, ...]:
        """Return the blocks' calls for the ends; no block is run."""
        if self._form is None or self._block == self._anatomy.last:
            return ()
        calls: list[BlockCall] = []
        modules = {i: self._anatomy.block(self._model, i) for i in range(self._anatomy.block_count)}
        form = self._form

        def pass_on(*args: Any, **kwargs: Any) -> Any:
            values = (*args, *kwargs.values())
            return form.output(next(value for value in values if isinstance(value, Tensor)))

        with (
            torch.no_grad(),
            ExitStack() as stack,
            hooks.attending(self._model, self._attend),
            hooks.watched(modules, lambda _, call: calls.append(BlockCall.of(call))),
            hooks.cut_short(modules[self._anatomy.last]),
        ):
            for block in modules.values():
                stack.enter_context(hooks.bypassed(block, pass_on))
            row = _PackedRow.of(
                [self._ends.end(i) for i in self._packing.order], self._packing.width
            )
            hooks.run_until_cut(lambda: row.run(self._model))
        return tuple(calls)


def _selected(
    kept: Sequence[GroupKeyValues], members: Sequence[Sequence[int]], before: Packing, now: Packing
) -> Iterator[GroupKeyValues]:
    """Yield the kept keys and values of the chosen members, for each group that has any."""
    groups = iter(now.groups)
    for states, group, places in zip(kept, before.groups, members, strict=True):
        if places:
            index = torch.tensor(places, device=states.keys.device)
            yield states.select(index, group, next(groups))


def attention(
    asked: hooks.AttentionCall, packing: Packing, kept: Sequence[GroupKeyValues]
) -> Tensor:
    """Return the output of attention for a row, [1, N, heads, d]. Raises ModelError for arguments
    that `attend` does not support."""
    names = [name for name in UNKNOWN if asked.told.get(name) is not None]
    if names or asked.told.get("dropout") or len(asked.query) != 1:
        raise ModelError(f"Its attention is told of {', '.join(names) or 'more than one row'}.")
    scale = asked.told.get("scaling")
    scaling = asked.query.shape[-1] ** -0.5 if scale is None else float(scale)
    query, key, value = (_row_of(states) for states in (asked.query, asked.key, asked.value))
    window = asked.told.get("sliding_window")
    return attend(query, key, value, packing, kept, scaling, window).unsqueeze(0)


def _row_of(states: Tensor) -> Tensor:
    """Turn states [1, heads, N, d] into a row [N, heads, d]."""
    return states.squeeze(0).transpose(0, 1)


def _blocks_by_module(model: Any, anatomy: Anatomy) -> dict[int, int]:
    """Return the block of each module in a block, by the module's `id`."""
    return {
        id(module): index
        for index in range(anatomy.block_count)
        for module in anatomy.block(model, index).modules()
    }


class _Recorder:
    """Runs whole sequences, one behind another, in all N tokens, up to the last attention that the
    states of ends depend on, and keeps the states."""

    form: BlockCall | None = None
    """The form of a block's output; None if no block ran to its end."""

    def __init__(self, model: Any, anatomy: Anatomy, block: int, blocks: Mapping[int, int]) -> None:
        self._model, self._anatomy, self._block, self._blocks = model, anatomy, block, blocks
        upper_blocks = range(block + 1, anatomy.block_count)
        self._sums: list[Tensor] = []
        self._kept: dict[int, list[tuple[Tensor, Tensor]]] = {index: [] for index in upper_blocks}

    def read(self, sequences: Sequence[Sequence[int]], device: torch.device) -> Tensor:
        """Run these sequences; return the places [B] where they begin, on the CPU."""
        starts = torch.empty(len(sequences), dtype=torch.long)
        total = 0
        tokens_max = WHOLE_TOKENS_MAX if device.type == "cpu" else ACCELERATED_TOKENS_MAX
        for batch in by_length([len(ids) for ids in sequences], tokens_max):
            lengths = SequenceLengths(tuple(len(sequences[i]) for i in batch), (0,) * len(batch))
            packing = Packing.of(lengths, WHOLE_PADDED_MAX, device)
            self._run(packing, [sequences[batch[place]] for place in packing.order])
            starts[batch] = total + packing.firsts(range(len(batch)))
            total += packing.width
        return starts

    def sums(self) -> Tensor:
        """Return the residual sums [N, d] of the block."""
        return torch.cat(self._sums)

    def kept(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield the number, keys and values [N, heads, d] of each block above the recorded one; the
        recorder lets go of yielded ones."""
        for index in list(self._kept):
            keys, values = zip(*self._kept.pop(index), strict=True)
            yield index, torch.cat(keys), torch.cat(values)

    def _run(self, packing: Packing, sequences: Sequence[Sequence[int]]) -> None:
        model, anatomy = self._model, self._anatomy
        row = _PackedRow.of([(ids, range(len(ids))) for ids in sequences], packing.width)
        last_ffn = anatomy.up_modules(model, anatomy.last)[0]
        end = anatomy.block(model, anatomy.last) if self._block == anatomy.last else last_ffn
        with (
            hooks.attending(model, partial(self._attend, packing)),
            sums_observed(model, anatomy, self._block) as sums,
            hooks.captured(anatomy.block(model, 0)) as first_block,
            hooks.cut_short(end),
        ):
            hooks.run_until_cut(lambda: row.run(model))
        self._sums.append(sums().reshape(-1, anatomy.width))
        if first_block:
            self.form = BlockCall.of(first_block[0])

    def _attend(self, packing: Packing, asked: hooks.AttentionCall) -> Tensor:
        keys, values = _row_of(asked.key), _row_of(asked.value)
        index = self._blocks[id(asked.module)]
        if index > self._block:
            self._kept[index].append((keys, values))
        return attention(
            asked, packing, [GroupKeyValues.none(keys, group) for group in packing.groups]
        )


@dataclass(frozen=True)
class _PackedRow:
    """Tokens in one row, and their positions in their sequences."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]

    @classmethod
    def of(cls, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], width: int) -> _PackedRow:
        """Make a row of tokens and positions, filled up with its first token."""
        ids = [token for tokens, _ in sequences for token in tokens]
        positions = [place for _, places in sequences for place in places]
        rest = width - len(ids)
        return cls((*ids, *[ids[0]] * rest), (*positions, *[0] * rest))

    def run(self, model: Any) -> None:
        """Run a pass over the row. Raises ModelError for a model without position ids."""
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise ModelError(f"{type(model).__name__} takes no position_ids.")
        device = input_device(model)
        ids, places = (
            torch.tensor([numbers], device=device) for numbers in (self.ids, self.positions)
        )
        model(input_ids=ids, position_ids=places, use_cache=False, return_dict=True)


class WholeSequences(EndPass):
    """Whole sequences side by side, padded behind: each is its own end."""

    def __init__(
        self, model: Any, anatomy: Anatomy, ids: Sequence[Sequence[int]], block: int, pad: int
    ) -> None:
        """Run one pass over the sequences, without gradients."""
        super().__init__(model, anatomy, block)
        device = input_device(model)
        self._size = max(map(len, ids))
        padded = [[*sequence, *[pad] * (self._size - len(sequence))] for sequence in ids]
        mask = [[1] * len(sequence) + [0] * (self._size - len(sequence)) for sequence in ids]
        inputs = {
            "input_ids": torch.tensor(padded, device=device),
            "attention_mask": torch.tensor(mask, device=device),
        }
        with sums_observed(model, anatomy, block) as sums:
            self._calls = record(model, anatomy, inputs, ()).calls
        self.sums = sums().reshape(-1, anatomy.width)

    def row(self, sequences: Tensor, positions: Tensor) -> Tensor:
        """See `EndPass`."""
        return sequences * self._size + positions

    def _above(self, hidden: Tensor) -> Tensor:
        upper_block = self._block + 1
        states = hidden.view(-1, self._size, self._anatomy.width)
        recording = Recording({}, self._calls, {upper_block: states}, None)
        sums = sums_from(self._model, self._anatomy, recording, upper_block)
        return sums.reshape(-1, self._anatomy.width)


# --- checking a model -----------------------------------------------------------------------------


def keeps_prefixes(model: Any, anatomy: Anatomy) -> bool:
    """Tell whether the packed ends of a model's sequences give the states of passes over whole
    sequences. Tried on three sequences, and on two chosen from them."""
    sample = tuple(sample_inputs(model, SAMPLE_TOKENS)["input_ids"][0].tolist())
    ends = Ends((sample, sample[1:-1], sample[2:]), (3, 1, 2))
    subset_index = [2, 0]
    if not _has_known_attention(model):
        return False
    try:
        ends_pass = PackedEnds(model, anatomy, ends, 0, padded_max=SAMPLE_TOKENS)
        subset = ends_pass.select(subset_index)
        with torch.no_grad():
            cases = [(ends_pass, i, i) for i in range(3)] + [
                (subset, j, i) for j, i in enumerate(subset_index)
            ]
            are_close = all(
                _is_close(
                    _last_of(run, number, ends.lengths.sizes[i]),
                    _alone(model, anatomy, ends.ids[i])[ends.starts[i] :],
                )
                for run, number, i in cases
            )
        return are_close and (not _has_window(model) or ends_pass.windows != {None})
    except (ModelError, TypeError, ValueError, AttributeError, RuntimeError, LookupError):
        return False


def _has_known_attention(model: Any) -> bool:
    """Tell whether in every block a token looks at all tokens before it, or at those in a
    window."""
    config = model.config.get_text_config()
    return ATTENTIONS.issuperset(getattr(config, "layer_types", None) or ())


def _has_window(model: Any) -> bool:
    """Tell whether some blocks look at a window only: attention is told of it, or a mask hides
    it."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    has_one = getattr(config, "sliding_window", None) is not None
    return has_one and (kinds is None or "sliding_attention" in kinds)


def _last_of(run: PackedEnds, sequence: int, size: int) -> Tensor:
    """Return the residual sums [size, d] of the last block for one end."""
    positions = torch.arange(size, device=run.sums.device)
    return run.last_sums(run.sums)[run.row(torch.full_like(positions, sequence), positions)]


def _alone(model: Any, anatomy: Anatomy, ids: Sequence[int]) -> Tensor:
    """Return the residual sums [T, d] of the last block in a pass over one sequence."""
    inputs = torch.tensor([list(ids)], device=input_device(model))
    with torch.no_grad(), sums_observed(model, anatomy, anatomy.last) as sums:
        model(input_ids=inputs, use_cache=False, return_dict=True)
    return sums().reshape(len(ids), anatomy.width)


def _is_close(found: Tensor, expected: Tensor) -> bool:
    error = (found.float() - expected.float()).abs().max()
    roundings = 8 * torch.finfo(expected.dtype).eps
    return bool(error <= max(TOLERANCE, roundings) * expected.float().abs().max())
