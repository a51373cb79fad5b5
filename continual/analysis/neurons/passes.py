"""Runs a model with the FFN row of one position scaled, and gives the gradients of an answer.

The output of an FFN's output matrix V joins the residual sum. So a row w̄ scaled by α moves that sum
by (α − 1)·w̄V, and ∂P/∂w = (∂P/∂sum)·Vᵀ: a pass starts at the sum of the row's own block, and the
copies of a lower block join the ones of the blocks above on their way. One forward and one backward
pass serve all copies of several blocks.

- ``EndPass``  a decoder whose keys and values of the tokens before are kept: a copy is one row
- ``WholePass``  encoders, encoder-decoders, and decoders with another attention: whole texts
- ``FullPass``  a full forward for each block with its rows replaced: every model with FFNs, also
  one that normalises an FFN's output, or has open gates

Knows rows and gradients; leaves their sums to ``attribution``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from continual import hooks
from continual.analysis.neurons.gold import GoldToken
from continual.anatomy import WANTS_OTHER_INPUTS, Anatomy, reads_ahead
from continual.errors import ModelError
from continual.out_of_memory import is_out_of_memory
from continual.passes.edit_site import find_tail
from continual.passes.partial import BlockCall, logits_of, sums_observed
from continual.passes.row_tail import RowTail
from continual.passes.suffix import keeps_prefixes
from continual.storage import input_device

TOKENS_MAX = 4096  # that go through a block at a time
LOGITS_MAX = 2**25  # of one forward pass


class ScaledPass(ABC):
    """One gold token, read by the model as it stands; rows of its position can be scaled."""

    rows: Tensor  # [L, d_ff] w̄, the row of each block at the token's position
    logits: Tensor  # [vocab] at that position, float32

    def __init__(self, model: Any, anatomy: Anatomy, gold: GoldToken) -> None:
        self._model, self._anatomy, self._gold = model, anatomy, gold

    @property
    def probability(self) -> float:
        """P(target)."""
        return float(self.logits.softmax(-1)[self._gold.target])

    @property
    def is_right(self) -> bool:
        """True if the target is the likeliest token."""
        return int(self.logits.argmax()) == self._gold.target

    @abstractmethod
    def gradients(self, scales: Tensor) -> Tensor:
        """Return Σ_k ∂P/∂w at scales[k]·w̄, block by block: [L, d_ff] float32. `scales` [m]."""

    def _gradients_of(self, logits: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the gradients of Σ P(target) over the rows of logits [n, vocab]."""
        shares = logits.float().softmax(-1)[:, self._gold.target]
        return torch.autograd.grad(shares.sum(), list(inputs))

    def _read(self) -> Observation:
        """Run the model once, and keep all that a pass starts from."""
        return observe_rows(self._model, self._anatomy, self._gold)


@dataclass(frozen=True)
class Observation:
    """One forward pass over a gold token's text."""

    rows: Tensor  # [L, d_ff]
    sums: tuple[Tensor, ...]  # [1, T, d] the residual sum of each block
    calls: tuple[BlockCall, ...]
    logits: Tensor  # [vocab] float32


@torch.no_grad()
def observe_rows(model: Any, anatomy: Anatomy, gold: GoldToken) -> Observation:
    """Observe the rows, the residual sums and the blocks' calls of a pass."""
    blocks = range(anatomy.block_count)
    rows: dict[int, Tensor] = {}
    calls: dict[int, BlockCall] = {}
    downs = {block: anatomy.down_module(model, block) for block in blocks}

    def see_row(block: int, call: hooks.Call) -> None:
        rows[block] = call.input.reshape(-1, anatomy.ffn_width)[gold.position]

    def see_call(block: int, call: hooks.Call) -> None:
        calls[block] = BlockCall.of(call)

    with ExitStack() as stack:
        stack.enter_context(hooks.watched(downs, see_row))
        modules = {block: anatomy.block(model, block) for block in blocks}
        stack.enter_context(hooks.watched(modules, see_call))
        sums = [stack.enter_context(sums_observed(model, anatomy, block)) for block in blocks]
        logits = logits_of(model, gold.inputs(_device(model)))
    return Observation(
        torch.stack([rows[block] for block in blocks]),
        tuple(seen().reshape(1, -1, anatomy.width) for seen in sums),
        tuple(calls[block] for block in blocks),
        logits[0, gold.position].float(),
    )


class FullPass(ScaledPass):
    """A full forward of all copies for each block, with their rows in the place of the model's."""

    def __init__(self, model: Any, anatomy: Anatomy, gold: GoldToken) -> None:
        super().__init__(model, anatomy, gold)
        rows: dict[int, Tensor] = {}
        downs = {b: anatomy.down_module(model, b) for b in range(anatomy.block_count)}

        def see(block: int, call: hooks.Call) -> None:
            rows[block] = call.input.reshape(-1, anatomy.ffn_width)[gold.position]

        with torch.no_grad(), hooks.watched(downs, see):
            logits = logits_of(model, gold.inputs(_device(model)))
        self.rows = torch.stack([rows[block] for block in sorted(rows)])
        self.logits = logits[0, gold.position].float()

    def gradients(self, scales: Tensor) -> Tensor:
        """See `ScaledPass`."""
        per_pass = max(1, TOKENS_MAX // len(self._gold.ids))
        return torch.stack(
            [
                sum((self._of_block(b, part) for part in scales.split(per_pass)), torch.zeros(()))
                for b in range(self._anatomy.block_count)
            ]
        )

    def _of_block(self, block: int, scales: Tensor) -> Tensor:
        leaf = (scales.to(self.rows)[:, None] * self.rows[block]).requires_grad_()
        down = self._anatomy.down_module(self._model, block)
        inputs = self._gold.inputs(leaf.device, len(scales))
        place = self._gold.position
        with torch.enable_grad(), hooks.fed(down, lambda state: with_rows(state, leaf, place)):
            logits = logits_of(self._model, inputs)[:, place]
            (gradient,) = self._gradients_of(logits, [leaf])
        return gradient.float().sum(0)


def with_rows(state: Tensor, rows: Tensor, position: int) -> Tensor:
    """Return a state [B, T, .] or [B·T, .] with other rows [B, .] at one position."""
    shape, count = state.shape, len(rows)
    state = state.reshape(count, -1, shape[-1]).clone()
    state[:, position] = rows
    return state.reshape(shape)


class _JoiningPass(ScaledPass):
    """Copies that enter at the residual sum of their block, and go up together."""

    def __init__(self, model: Any, anatomy: Anatomy, gold: GoldToken, tail: RowTail) -> None:
        super().__init__(model, anatomy, gold)
        self._tail = tail

    def gradients(self, scales: Tensor) -> Tensor:
        """See `ScaledPass`."""
        blocks = range(self._anatomy.block_count)
        gradients: list[Tensor] = []
        for part in _parts(blocks, self._blocks_at_once(len(scales))):
            with torch.enable_grad():
                gradients += self._of_blocks(part, scales)
        return torch.stack(gradients)

    @abstractmethod
    def _state(self, block: int, shifts: Tensor) -> Tensor:
        """Return the residual sums [m, T, d] of a block whose row's own was shifted by [m, d]."""

    @abstractmethod
    def _rows_of(self, sums: Tensor) -> Tensor:
        """Return the sums [n, d] at the token's position."""

    @abstractmethod
    def _through(self, block: int, state: Tensor) -> Tensor:
        """Return the residual sums of a block that a state enters."""

    @property
    @abstractmethod
    def _tokens(self) -> int:
        """The number of tokens of a copy."""

    def _blocks_at_once(self, copies: int) -> int:
        by_tokens = TOKENS_MAX // (copies * self._tokens)
        return max(1, min(by_tokens, LOGITS_MAX // (copies * len(self.logits))))

    def _of_blocks(self, blocks: range, scales: Tensor) -> Iterator[Tensor]:
        """Yield Σ_k ∂P/∂w [d_ff] for some blocks, from one forward and one backward pass."""
        anatomy, model = self._anatomy, self._model
        leaves: list[Tensor] = []
        sums: Tensor | None = None
        for block in range(blocks.start, anatomy.block_count):
            if sums is not None:
                norm = anatomy.norm_after_module(model, block - 1)
                sums = self._through(block, sums if norm is None else norm(sums))
            if block in blocks:
                leaves.append(self._shifts(block, scales))
                state = self._state(block, leaves[-1])
                sums = state if sums is None else torch.cat([sums, state])
        assert sums is not None
        logits = self._tail(self._rows_of(sums))
        for block, gradient in zip(blocks, self._gradients_of(logits, leaves), strict=True):
            values = anatomy.down_weight(model, block)
            yield values.float() @ gradient.float().sum(0)

    def _shifts(self, block: int, scales: Tensor) -> Tensor:
        """Return (α − 1)·w̄V [m, d], to be differentiated."""
        with torch.no_grad():
            given = self.rows[block] @ self._anatomy.down_weight(self._model, block)
            return ((scales.to(given) - 1)[:, None] * given).requires_grad_()


class WholePass(_JoiningPass):
    """Copies of the whole text, from the recorded states of one pass over it."""

    def __init__(self, model: Any, anatomy: Anatomy, gold: GoldToken, tail: RowTail) -> None:
        super().__init__(model, anatomy, gold, tail)
        seen = self._read()
        self.rows, self.logits, self._sums, self._calls = (
            seen.rows,
            seen.logits,
            seen.sums,
            seen.calls,
        )

    @property
    def _tokens(self) -> int:
        return len(self._gold.ids)

    def _state(self, block: int, shifts: Tensor) -> Tensor:
        state = self._sums[block].expand(len(shifts), -1, -1).clone()
        state[:, self._gold.position] += shifts
        return state

    def _rows_of(self, sums: Tensor) -> Tensor:
        return sums[:, self._gold.position]

    def _through(self, block: int, state: Tensor) -> Tensor:
        call = repeated(self._calls[block], len(state))
        with sums_observed(self._model, self._anatomy, block) as sums:
            call.replay(self._anatomy.block(self._model, block), state)
        return sums().reshape(state.shape)


class EndPass(_JoiningPass):
    """Copies of the last token alone, behind the kept keys and values of the tokens before it."""

    def __init__(self, model: Any, anatomy: Anatomy, gold: GoldToken, tail: RowTail) -> None:
        super().__init__(model, anatomy, gold, tail)
        self._blocks = {
            id(module): block
            for block in range(anatomy.block_count)
            for module in anatomy.block(model, block).modules()
        }
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        with hooks.attending(model, self._attend_whole):
            seen = self._read()
        self.rows, self.logits = seen.rows, seen.logits
        self._sums = [sums[:, -1] for sums in seen.sums]
        self._calls = self._calls_at_end()

    @property
    def _tokens(self) -> int:
        return 1

    def _state(self, block: int, shifts: Tensor) -> Tensor:
        return (self._sums[block] + shifts)[:, None]

    def _rows_of(self, sums: Tensor) -> Tensor:
        return sums[:, 0]

    def _through(self, block: int, state: Tensor) -> Tensor:
        call = repeated(self._calls[block], len(state))
        with (
            hooks.attending(self._model, self._attend_end),
            sums_observed(self._model, self._anatomy, block) as sums,
        ):
            call.replay(self._anatomy.block(self._model, block), state)
        return sums().reshape(state.shape)

    @torch.no_grad()
    def _calls_at_end(self) -> tuple[BlockCall, ...]:
        """Return the blocks' calls for the last token alone; no block is run."""
        calls: list[BlockCall] = []
        anatomy, model, gold = self._anatomy, self._model, self._gold
        modules = {block: anatomy.block(model, block) for block in range(anatomy.block_count)}
        device = _device(model)

        def pass_on(*args: Any, **kwargs: Any) -> Any:
            return next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))

        with (
            ExitStack() as stack,
            hooks.attending(model, self._attend_end),
            hooks.watched(modules, lambda _, call: calls.append(BlockCall.of(call))),
            hooks.cut_short(modules[anatomy.last]),
        ):
            form = self._form
            for module in modules.values():
                stack.enter_context(
                    hooks.bypassed(module, lambda *a, **k: form.output(pass_on(*a, **k)))
                )
            hooks.run_until_cut(
                lambda: model(
                    input_ids=torch.tensor([gold.ids[-1:]], device=device),
                    position_ids=torch.tensor([[gold.position]], device=device),
                    use_cache=False,
                    return_dict=True,
                )
            )
        return tuple(calls)

    def _read(self) -> Observation:
        seen = super()._read()
        self._form = seen.calls[0]
        return seen

    def _attend_whole(self, asked: hooks.AttentionCall) -> Tensor:
        """Attend over the whole text; keep keys and values of all tokens but the last."""
        self._kept[self._blocks[id(asked.module)]] = asked.key[:, :, :-1], asked.value[:, :, :-1]
        count, window = asked.query.shape[2], asked.told.get("sliding_window")
        mask = torch.ones(count, count, dtype=torch.bool, device=asked.query.device).tril()
        if window is not None:
            mask = mask.triu(1 - int(window))
        return _attended(asked, asked.key, asked.value, mask)

    def _attend_end(self, asked: hooks.AttentionCall) -> Tensor:
        """Attend from the last token of each copy, behind the kept keys and values."""
        window = asked.told.get("sliding_window")
        states = []
        for kept, own in zip(
            self._kept[self._blocks[id(asked.module)]], (asked.key, asked.value), strict=True
        ):
            both = torch.cat([kept.expand(len(own), -1, -1, -1), own], 2)
            states.append(both if window is None else both[:, :, -int(window) :])
        return _attended(asked, states[0], states[1], None)


def _attended(
    asked: hooks.AttentionCall, keys: Tensor, values: Tensor, mask: Tensor | None
) -> Tensor:
    """Return the output [B, T, heads, d] of attention."""
    return scaled_dot_product_attention(
        asked.query,
        keys,
        values,
        attn_mask=mask,
        scale=asked.told.get("scaling"),
        enable_gqa=keys.shape[1] != asked.query.shape[1],
    ).transpose(1, 2)


def repeated(call: BlockCall, count: int) -> BlockCall:
    """Return a block's call for `count` copies of a batch of one: tensors of at least two
    dimensions whose first is one are expanded."""
    return replace(call, args=_expanded(call.args, count), kwargs=_expanded(call.kwargs, count))


def _expanded(value: Any, count: int) -> Any:
    if isinstance(value, Tensor):
        is_batch = value.ndim > 1 and len(value) == 1
        return value.expand(count, *value.shape[1:]) if is_batch else value
    if isinstance(value, Mapping):
        return {name: _expanded(part, count) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_expanded(part, count) for part in value)
    return value


def _parts(blocks: range, size: int) -> Iterator[range]:
    for start in range(0, len(blocks), size):
        yield blocks[start : start + size]


def _device(model: Any) -> torch.device:
    device: torch.device = input_device(model)
    return device


class PassMaker:
    """Makes the passes of one model by the quickest way that its parts allow."""

    def __init__(self, model: Any, anatomy: Anatomy, *, has_gates: bool = False) -> None:
        """Take a model whose forward is run as it stands; with open gates only full passes see all
        that gates read. Raises ModelError for a model without FFNs."""
        if anatomy.down is None:
            raise ModelError(
                "Knowledge neurons are coordinates of an FFN that each block has, and this model "
                f"has none. {anatomy.no_ffn_site}"
            )
        self.model, self.anatomy = model, anatomy
        self._tail = None if has_gates else _tail_of(model, anatomy)
        self._keeps_prefixes = (
            self._tail is not None
            and anatomy.encoder is None
            and not reads_ahead(model, anatomy)
            and keeps_prefixes(model, anatomy)
        )

    @property
    def way(self) -> type[ScaledPass]:
        """The class of the passes, where a token is said at the end of its text."""
        if self._tail is None:
            return FullPass
        return EndPass if self._keeps_prefixes else WholePass

    def read(self, gold: GoldToken) -> ScaledPass:
        """Run the model once over a gold token's text. Raises ModelError if its logits are not
        finite."""
        made = self._made(gold)
        if not bool(made.logits.isfinite().all()):
            raise ModelError(
                "The model's logits are NaN or infinite: nothing can be attributed to its neurons."
            )
        return made

    def _made(self, gold: GoldToken) -> ScaledPass:
        if self._tail is None:
            return FullPass(self.model, self.anatomy, gold)
        kind = EndPass if self._keeps_prefixes and gold.is_last and len(gold.ids) > 1 else WholePass
        return kind(self.model, self.anatomy, gold, self._tail)


def _tail_of(model: Any, anatomy: Anatomy) -> RowTail | None:
    """Return the row tail of a model whose FFNs add to the residual sum; None for any other."""
    if not anatomy.is_at_ffn:
        return None
    try:
        tail = find_tail(model, anatomy)
    except ModelError:
        return None
    except WANTS_OTHER_INPUTS as error:
        if is_out_of_memory(error):
            raise
        return None
    return tail if tail.pooled is None else None
