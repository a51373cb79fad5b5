"""Runs a model in parts: block to block on kept hidden states, and from the last FFN to logits.

- ``record`` keeps each block's call in one forward pass, and the hidden states asked for
- ``run`` takes hidden states through some of the blocks, ``finish`` from the last one to the logits
- ``rows_from`` gives queries and residual sums at the last FFN from recorded states on
- ``capture_answers`` gives them for some positions in one pass, and runs the last FFN for no other
- ``capture_rows`` gives queries, residual sums and logits in one pass, ``capture_site`` all but the
  logits, for less
- ``find_tail`` gives the logits of single positions, for the many small steps of an optimisation

``run`` and ``finish`` go through the model's own code and equal its forward bit for bit; the row
tail is a chain of its modules, checked against the forward when it is built, and equal up to
rounding. Patches that are on the model act in all of them. Nothing here knows of edits.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from continual import hooks
from continual.anatomy import WANTS_OTHER_INPUTS, Anatomy, enclosing_modules, observe, sample_inputs
from continual.errors import ModelError
from continual.out_of_memory import is_out_of_memory

TailModule = Callable[[Tensor], Tensor]


class NeverRuns(ModelError):
    """A module that ``[anatomy]`` names does not run in a forward pass."""


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
    the state that leaves the last block.
    """

    inputs: Mapping[str, Tensor]
    calls: tuple[BlockCall, ...]
    hidden: Mapping[int, Tensor]
    encoded: Any  # the encoder's output; None without an encoder


@dataclass(frozen=True)
class SiteCapture:
    """The states at one FFN site that a patch starts from, and the logits."""

    query: Tensor  # [B, T, d] the input of the FFN
    hidden: Tensor  # [B, T, d] residual + FFN output, before any norm
    logits: Tensor  # [B, T, vocab], or [B, labels]


@dataclass(frozen=True)
class RowTail:
    """Takes rows [n, d] of the last block's residual sum to their logits [n, vocab or labels].

    ``pooled`` is the position whose row a classifier looks at, 0 or -1 (the last that is not
    padding); None if every position has its own logits.
    """

    steps: tuple[TailModule, ...]
    pooled: int | None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits of each row, differentiable in ``hidden``."""
        state = hidden.unsqueeze(1)  # each row is a sequence of one position
        for step in self.steps:
            state = step(state)
        return state.flatten(1)


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
    with hooks.watched(modules, see), hooks.watched(_encoders(model, anatomy), see_encoder):
        logits_of(model, inputs)
    return Recording(
        dict(inputs), tuple(calls), hidden, encoder_outputs[0] if encoder_outputs else None
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
        hooks.cut_short(anatomy.block(model, block)),
    ):
        hooks.run_until_cut(lambda: logits_of(model, inputs))
    shape = (next(iter(inputs.values())).shape[0], -1, anatomy.width)  # a tracer follows shapes
    query, hidden = site_states()
    return query.reshape(shape), hidden.reshape(shape)  # some blocks give their FFN flat rows


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
        hooks.narrowed(entries, anatomy.down_module(model, block), rows),
        hooks.cut_short(anatomy.block(model, block)),
    ):
        hooks.run_until_cut(lambda: logits_of(model, inputs))
    query, hidden = site_states()
    return query, hidden.reshape(-1, anatomy.width).index_select(0, rows)


def rows_from(
    model: Any, anatomy: Anatomy, recording: Recording, block: int
) -> tuple[Tensor, Tensor]:
    """Return query and residual sum [B, T, d] at the last FFN site, as ``capture_site``, from the
    recorded states that enter ``block`` on."""
    with _site_observed(model, anatomy, anatomy.last) as site_states:
        run(model, anatomy, recording, recording.hidden[block], block, anatomy.block_count)
    query, hidden = site_states()
    shape = (*recording.hidden[block].shape[:-1], anatomy.width)
    return query.reshape(shape), hidden.reshape(shape)


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
        sums_observed(model, anatomy, block) as seen,
    ):
        yield lambda: (query(), seen())


@contextmanager
def _queries_observed(model: Any, anatomy: Anatomy, block: int) -> Iterator[Callable[[], Tensor]]:
    """Observe a forward pass within ``with``; the function returned gives the query at the site of
    a block, as gates read it: an output is read before values land on it."""
    if anatomy.is_at_ffn:
        with hooks.captured(anatomy.query_module(model, block)) as calls:
            yield lambda: calls[0].input
        return
    seen: list[Tensor] = []
    modules = {0: anatomy.block(model, block)}
    with hooks.watched(modules, lambda _, call: seen.append(call.hidden), first=True):
        yield lambda: seen[0]


@contextmanager
def sums_observed(model: Any, anatomy: Anatomy, block: int) -> Iterator[Callable[[], Tensor]]:
    """Observe a forward pass within ``with``; the function returned gives the residual sum of a
    block, in the pass's own shape."""
    norm = anatomy.norm_after_module(model, block)
    with hooks.captured(anatomy.block(model, block) if norm is None else norm) as calls:
        yield lambda: calls[0].hidden if norm is None else calls[0].input


def find_tail(model: Any, anatomy: Anatomy) -> RowTail:
    """Build the row tail of the last block from one observed token, and check it on eight.

    A model whose end is no chain of modules is its own tail: it runs on the rows, without its
    blocks. Raises ``ModelError`` if neither gives the model's own logits, or if an addition to the
    output of ``down`` is not simply added to the residual sum.
    """
    inputs = sample_inputs(model, length=8)
    try:
        rows = RowTail(_find_steps(model, anatomy), None)
        return _check_additive(model, anatomy, inputs, _check_rows(model, anatomy, inputs, rows))
    except NeverRuns:
        raise
    except ModelError as refusal:
        try:
            rows = RowTail(_own_end(model, anatomy), None)
            return _check_additive(
                model, anatomy, inputs, _check_rows(model, anatomy, inputs, rows)
            )
        except WANTS_OTHER_INPUTS as error:
            if is_out_of_memory(error):
                raise
        except ModelError:
            pass
        raise refusal


def settled(model: Any, anatomy: Anatomy) -> Anatomy:
    """Return the anatomy with the site that the model has: the FFN site, else the block site, else
    the site behind all blocks, else the block site without rows, where they do not give the logits.

    Raises ModelError if nothing can be added to the states of the model.
    """
    refusal = _refusal(model, anatomy)
    if refusal and anatomy.is_at_ffn:
        anatomy = anatomy.at_blocks(refusal)
        refusal = _refusal(model, anatomy)
    if not refusal:
        return anatomy
    others = list(enclosing_modules(model, anatomy))
    with_rows = next((other for other in others if not _refusal(model, other)), None)
    if with_rows is not None:
        return with_rows
    moving = next((other for other in [anatomy, *others] if _moves(model, other)), None)
    if moving is None:
        raise ModelError(
            f"No place was found in {type(model).__name__} from which its answers can be moved: "
            f"{refusal} Models of this kind cannot be corrected."
        )
    return replace(moving, no_rows=refusal)


@torch.no_grad()
def _moves(model: Any, anatomy: Anatomy) -> bool:
    """Tell whether an addition to the output of the last block moves the logits."""
    inputs = sample_inputs(model, length=8)
    patch = torch.linspace(-1, 1, anatomy.width, device=model.get_input_embeddings().weight.device)
    with hooks.added(_landing(model, anatomy), patch.to(next(model.parameters()).dtype)):
        patched_logits = logits_of(model, inputs)
    return not torch.equal(patched_logits, logits_of(model, inputs))


def _refusal(model: Any, anatomy: Anatomy) -> str:
    """Return the reason why rows at an anatomy's site do not give the logits; empty if they do."""
    try:
        find_tail(model, anatomy)
    except NeverRuns:
        raise
    except ModelError as refusal:
        return str(refusal)
    except WANTS_OTHER_INPUTS as error:
        if is_out_of_memory(error):
            raise
        return f"{type(model).__name__} cannot be run in parts ({error})."
    return ""


# --- building a row tail --------------------------------------------------------------------------

_ADDED_ROUNDINGS = 4
"""Roundings by which an addition to a sum may be off."""

_SCALED_EVENLY = 0.1
"""The share of a scaled patch that may be rounding."""

_ROUNDINGS = 8
"""Units in the last place by which a factor found by division may be off."""


def _find_steps(model: Any, anatomy: Anatomy) -> tuple[TailModule, ...]:
    """Return the modules of the tail, with the model's own steps between and behind them."""
    calls = dict(observe(model, sample_inputs(model, length=1)))
    if missing := [path for path in anatomy.tail if path not in calls]:
        raise NeverRuns(f"{missing[0]}, named under [anatomy], does not run in a forward pass.")
    place = anatomy.block_path(anatomy.last)
    norm_after = anatomy.norm_after is not None
    state = calls[anatomy.tail[0]].input if norm_after else calls[place].hidden
    steps: list[TailModule] = []
    for path, module in zip(anatomy.tail, anatomy.tail_modules(model), strict=True):
        joint = _joint(model, state, calls[path].input, f"between {place} and {path}")
        steps += [*joint, module]
        state, place = calls[path].hidden, path
    ending = _ending(model, state, calls[""].output.logits, f"behind {place}")
    return (*steps, *ending)


def _own_end(model: Any, anatomy: Anatomy) -> tuple[TailModule, ...]:
    """Return the model's own forward behind its last block as a step, for rows [n, 1, d] that are
    sequences of one token."""
    inputs = sample_inputs(model, length=1)
    recording = record(model, anatomy, inputs, ())
    norm = anatomy.norm_after_module(model, anatomy.last)

    def end(hidden: Tensor) -> Tensor:
        many = {name: ids.expand(len(hidden), -1) for name, ids in inputs.items()}
        with ExitStack() as stack:
            for index in range(anatomy.block_count):
                stack.enter_context(hooks.unhooked(anatomy.block(model, index)))
            return finish(model, anatomy, replace(recording, inputs=many), hidden)

    return (end,) if norm is None else (norm, end)


def _joint(model: Any, state: Tensor, target: Tensor, where: str) -> tuple[TailModule, ...]:
    """Return the steps, none or a factor, from the output [1, 1, .] of one module to the next one's
    input. Raises ``ModelError`` if neither fits."""
    state, target = state.flatten(), target.flatten()
    if state.shape == target.shape:
        factor = torch.dot(state.double(), target.double()) / state.double().square().sum()
        for steps in ((), (partial(operator.mul, factor.item()),)):
            if _fits(steps, state, target):
                return steps
    raise ModelError(
        f"The rows of {type(model).__name__} cannot be computed one by one: {where} the model does "
        "something that is neither a module, a factor, a bias nor a soft cap. If a norm, a "
        "projection or the head was not found, name it in cedit.toml under [anatomy]: "
        "norm_after, final_norm, head."
    )


def _ending(model: Any, state: Tensor, target: Tensor, where: str) -> tuple[TailModule, ...]:
    """Return the model's own steps on the logits: a soft cap, a bias (maybe zero), or a factor."""
    for cap in _soft_caps(model):
        steps: tuple[TailModule, ...] = (partial(_soft_cap, cap),)
        if _fits(steps, state.flatten(), target.flatten()):
            return steps
    for bias in (*model.parameters(recurse=False), *model.buffers(recurse=False)):
        steps = (partial(operator.add, bias),)
        same_width = bias.shape[-1:] == state.shape[-1:]
        if same_width and _fits(steps, state.flatten(), target.flatten()):
            return steps
    return _joint(model, state, target, where)


def _soft_caps(model: Any) -> list[float]:
    """Return the soft caps in a config, under any name: the cap of the logits is among them."""
    config = model.config.get_text_config().to_dict()
    caps = {key: config[key] for key in config if "cap" in key and "soft" in key.replace("_", "")}
    return [float(cap) for cap in caps.values() if isinstance(cap, int | float) and cap > 0]


def _fits(steps: tuple[TailModule, ...], state: Tensor, target: Tensor) -> bool:
    logits = RowTail(steps, None)(state.unsqueeze(0)).flatten()
    return _is_close(logits, target, _ROUNDINGS * torch.finfo(state.dtype).eps)


def _soft_cap(cap: float, logits: Tensor) -> Tensor:
    return cap * torch.tanh(logits / cap)


# --- checking it ----------------------------------------------------------------------------------


@torch.no_grad()
def _check_rows(
    model: Any, anatomy: Anatomy, inputs: Mapping[str, Tensor], tail: RowTail
) -> RowTail:
    """Return the tail with its pooled position, if its rows give the model's logits. Raises
    ``ModelError`` otherwise."""
    rows = capture_rows(model, anatomy, inputs, anatomy.last)
    logits = tail(rows.hidden[0])
    if rows.logits.ndim == 3 and _is_close(logits, rows.logits[0]):
        return tail
    if rows.logits.ndim == 2:
        for position in (0, -1):
            if _is_close(logits[position], rows.logits[0]):
                return RowTail(tail.steps, position)
    raise ModelError(
        f"{' → '.join(anatomy.tail)} does not give the logits of {type(model).__name__} row by "
        f"row: {_difference(logits, rows.logits)}. If a module is missing, name it in "
        "cedit.toml under [anatomy]: norm_after, final_norm, head."
    )


@torch.no_grad()
def _check_additive(
    model: Any, anatomy: Anatomy, inputs: Mapping[str, Tensor], tail: RowTail
) -> RowTail:
    """Return the tail, if an addition to the FFN's output is added to the residual sum unchanged.
    Raises ``ModelError`` otherwise.

    """
    summed, patched = _require_added(model, anatomy, inputs)
    logits = tail(summed)
    logits = logits if tail.pooled is None else logits[tail.pooled]
    if not _is_close(logits, patched):
        raise ModelError(
            f"The logits of {type(model).__name__} do not follow what is added to "
            f"{_landing_path(anatomy)}: {_difference(logits, patched)}."
        )
    return tail


def _require_added(
    model: Any, anatomy: Anatomy, inputs: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return residual sums [T, d] with an addition to the site's output, and the model's logits
    [T, vocab] or [labels] with it. Raises ``ModelError`` if it does not join the sum unchanged.

    Compares the sum itself, in the units of its own rounding: half-precision logits would hide a
    factor of 0.9.
    """
    hidden = capture_rows(model, anatomy, inputs, anatomy.last).hidden
    hidden = hidden.reshape(-1, anatomy.width)
    patch = torch.linspace(-1, 1, anatomy.width).to(hidden) * hidden.std()
    with hooks.added(_landing(model, anatomy), patch):
        patched = capture_rows(model, anatomy, inputs, anatomy.last)
    found = patched.hidden.reshape(-1, anatomy.width)
    joined = (found.double() - hidden.double()), patch.double()
    if not _is_added(*joined, hidden):
        raise ModelError(
            f"What is added to the output of {_landing_path(anatomy)} in "
            f"{type(model).__name__} is changed before it joins the residual sum "
            f"({_changed(*joined)}). If a norm behind the sum was not found, name it in cedit.toml "
            "under [anatomy]: norm_after."
        )
    return hidden + patch, patched.logits[0]


def _landing(model: Any, anatomy: Anatomy) -> nn.Module:
    """Return the module of the last block on whose output values land."""
    if anatomy.is_at_ffn:
        return anatomy.down_module(model, anatomy.last)
    return anatomy.block(model, anatomy.last)


def _landing_path(anatomy: Anatomy) -> str:
    inside = anatomy.down if anatomy.is_at_ffn else None
    last = anatomy.last
    return anatomy.block_path(last) if inside is None else anatomy.path(last, inside)


def _is_added(found: Tensor, patch: Tensor, hidden: Tensor) -> bool:
    """Tell whether a sum [T, d] grew by the patch [d], up to the rounding of its number format: in
    each number, and in all of them together, where roundings cancel out."""
    eps = torch.finfo(hidden.dtype).eps
    magnitude = hidden.double().abs().max() + patch.abs().max()
    is_near = bool((found - patch).abs().max() <= _ADDED_ROUNDINGS * eps * magnitude)
    spread = magnitude / patch.square().mean().sqrt() / math.sqrt(found.numel())
    is_unbiased = abs(_share(found, patch) - 1) <= _ADDED_ROUNDINGS * eps * float(spread)
    return is_near and is_unbiased


def _share(found: Tensor, patch: Tensor) -> float:
    """Return the factor by which a patch [d] was multiplied before it was added to [T, d]."""
    return float((found * patch).sum() / (len(found) * patch.square().sum()))


def _changed(found: Tensor, patch: Tensor) -> str:
    """Describe the change of a patch on its way to the sum."""
    factor = _share(found, patch)
    rest = (found - factor * patch).abs().max() / patch.abs().max()
    if rest < _SCALED_EVENLY:
        return f"multiplied by {factor:.3g}"
    return f"normalised or mixed: {float(rest):.0%} of it are no multiple of what was added"


def _is_close(found: Tensor, expected: Tensor, tolerance: float | None = None) -> bool:
    """Tell whether both differ by rounding only, in units of the largest value.

    Unless given, half of the digits must agree: a missing module leaves none.
    """
    if found.shape != expected.shape:
        return False
    digits = math.sqrt(torch.finfo(expected.dtype).eps) if tolerance is None else tolerance
    return bool((found - expected).abs().max() <= digits * expected.abs().max())


def _difference(found: Tensor, expected: Tensor) -> str:
    """Describe the distance of logits from the model's own, for a message."""
    if found.numel() != expected.numel():
        return f"shape {list(found.shape)} instead of {list(expected.shape)}"
    difference = (found.flatten() - expected.flatten()).abs().max().item()
    return f"they differ by {difference:.2g}, the largest is {expected.abs().max().item():.2g}"


# --- stand-ins ------------------------------------------------------------------------------------


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _encoders(model: nn.Module, anatomy: Anatomy) -> dict[str, nn.Module]:
    """Return the encoder by its path; empty if there is none."""
    return {path: model.get_submodule(path) for path in [anatomy.encoder] if path is not None}
