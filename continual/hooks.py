"""The one place where a model is hooked: hooks are context managers, none outlives its block.

- ``watched``   sees every call of chosen modules, as a ``Call``
- ``entered``   sees the arguments of a module's calls before it runs
- ``captured``  collects the calls of one module in a list
- ``altered``   changes the hidden state that a module returns
- ``added``     adds to it
- ``joined_by``  adds a function of the input to it, before any other hook
- ``replaced``  puts another in its place
- ``fed``       changes the hidden state that goes into a module
- ``narrowed``  takes only some rows through a stretch of modules that work row by row
- ``bypassed``  runs a stand-in for a module's forward, ``standing_in`` one for any method;
  ``standing_aside`` puts stand-ins aside for a while
- ``uncompiled``  keeps a model's forward out of compiled code, which sees no hooks;
  ``is_recorded`` tells of a pass that is recorded as a graph
- ``unhooked``  runs a module without the hooks on it
- ``attending``  does the attention of a model in another way
- ``cut_short``  ends the whole forward pass where a module returns; see ``run_until_cut``
- ``count_on``  counts the hooks and stand-ins on a model

A module returns its hidden state either bare, as the first of a tuple, or as the first field of a
``ModelOutput``; only this module knows
that. Leaves the choice of modules to ``anatomy``.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from types import CodeType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import ModelOutput

ModuleName = TypeVar("ModuleName", bound=Hashable)


@dataclass(frozen=True)
class Call:
    """One call of a module: its arguments and its output."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any

    @property
    def input(self) -> Tensor:
        """The hidden state that went in: the first tensor among the arguments."""
        arguments = (*self.args, *self.kwargs.values())
        return next(value for value in arguments if isinstance(value, Tensor))

    @property
    def hidden(self) -> Tensor:
        """The hidden state in the output."""
        return hidden_of(self.output)


def hidden_of(output: Any) -> Tensor:
    """Return the hidden state in a module's output."""
    hidden = output if isinstance(output, Tensor) else output[0]
    assert isinstance(hidden, Tensor)
    return hidden


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """Return a module's output with another hidden state in it."""
    if isinstance(output, ModelOutput):
        return replace(output, **{next(iter(output.keys())): hidden})
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])


@contextmanager
def watched(
    modules: Mapping[ModuleName, nn.Module],
    see: Callable[[ModuleName, Call], None],
    *,
    first: bool = False,
) -> Iterator[None]:
    """Show ``see`` each call of the modules as it returns, under the module's key; with ``first``,
    before any present hook alters the output."""
    handles: list[RemovableHandle] = []
    try:
        for key, module in modules.items():
            handles.append(_watch(module, key, see, first))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def entered(
    module: nn.Module, see: Callable[[tuple[Any, ...], dict[str, Any]], None]
) -> Iterator[None]:
    """Show ``see`` the arguments of each call of the module, before it runs."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(args, kwargs)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def captured(module: nn.Module) -> Iterator[list[Call]]:
    """Collect the module's calls, in order."""
    calls: list[Call] = []
    with watched({0: module}, lambda _, call: calls.append(call)):
        yield calls


@contextmanager
def altered(module: nn.Module, alter: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass the hidden state that the module returns through ``alter``."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        return with_hidden(output, alter(hidden_of(output)))

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def added(module: nn.Module, addend: Tensor) -> Iterator[None]:
    """Add ``addend`` to the hidden state that the module returns."""
    with altered(module, lambda hidden: hidden + addend):
        yield


@contextmanager
def joined_by(module: nn.Module, addend: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Add ``addend`` of the module's input to the hidden state that it returns, in float32 and
    before any present hook sees it; where ``addend`` returns None the output stays as it is."""

    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        further = addend(args[0])
        if further is None:
            return output
        hidden = hidden_of(output)
        return with_hidden(output, (hidden.float() + further).to(hidden.dtype))

    handle = module.register_forward_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replaced(module: nn.Module, replacement: Tensor) -> Iterator[None]:
    """Replace the hidden state that the module returns."""
    with altered(module, lambda _: replacement):
        yield


@contextmanager
def fed(module: nn.Module, alter: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass the hidden state that goes into the module, its first argument, through ``alter``."""

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (alter(args[0]), *args[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def narrowed(entries: Sequence[nn.Module], end: nn.Module, rows: Tensor) -> Iterator[None]:
    """Run only these rows [n] of all positions, counted through the batch, from the ``entries`` to
    ``end``; the output of ``end`` is zero at all other positions."""
    shape: list[Any] = []  # of all positions

    def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        whole = args[0]
        shape[:] = whole.shape[:-1]
        return (whole.reshape(-1, whole.shape[-1]).index_select(0, rows), *args[1:])

    def scatter(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        width = output.shape[-1]
        whole = output.new_zeros((*shape, width)).view(-1, width)
        return whole.index_copy(0, rows, output).view(*shape, width)

    handles = [entry.register_forward_pre_hook(gather) for entry in entries]
    handles.append(end.register_forward_hook(scatter))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _StandIn:
    """A stand-in for a module's method. A copy of the module has its own method again."""

    def __init__(self, module: nn.Module, method: str, stand_in: Callable[..., Any]) -> None:
        self._module, self._method, self._stand_in = module, method, stand_in

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._stand_in(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """The arguments that the module's own method takes."""
        return inspect.signature(self._own)

    @property
    def __code__(self) -> CodeType:
        """The code of the module's own method, for programs that look at it before they call."""
        code = self._own.__code__
        assert isinstance(code, CodeType)
        return code

    @property
    def _own(self) -> Any:
        return getattr(type(self._module), self._method).__get__(self._module)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return getattr(type(self._module), self._method).__get__(memo[id(self._module)])


@contextmanager
def standing_in(module: nn.Module, method: str, stand_in: Callable[..., Any]) -> Iterator[None]:
    """Send calls of the module's method to ``stand_in`` instead."""
    before = module.__dict__.get(method)
    setattr(module, method, _StandIn(module, method, stand_in))
    try:
        yield
    finally:
        if before is None:
            delattr(module, method)
        else:
            setattr(module, method, before)


@contextmanager
def standing_aside(module: nn.Module, *methods: str) -> Iterator[None]:
    """Run within ``with`` without the stand-ins for some methods of the module."""
    before = {name: module.__dict__.pop(name) for name in methods if name in module.__dict__}
    try:
        yield
    finally:
        module.__dict__.update(before)


@contextmanager
def bypassed(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Run ``forward`` instead of the module's own; hooks on the module still see the call."""
    with standing_in(module, "forward", forward):
        yield


@contextmanager
def uncompiled(model: nn.Module, before: Callable[[], None]) -> Iterator[None]:
    """Run the model's forward as it is wherever torch.compile would compile it: compiled code does
    not see hooks that come and go. Calls ``before`` at the beginning of each forward."""
    forward = torch.compiler.disable(model.forward)

    def run(*args: Any, **kwargs: Any) -> Any:
        before()
        return forward(*args, **kwargs)

    with standing_in(model, "forward", torch.compiler.disable(run)):
        yield


def is_recorded() -> bool:
    """Tell whether the pass under way is recorded as a graph, by jit.trace or by export."""
    return torch._C._get_tracing_state() is not None or torch.compiler.is_compiling()


@contextmanager
def unhooked(module: nn.Module) -> Iterator[None]:
    """Run the module itself without its hooks within ``with``; those of its parts stay."""
    before, before_pre = module._forward_hooks, module._forward_pre_hooks
    module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        module._forward_hooks, module._forward_pre_hooks = before, before_pre


@dataclass(frozen=True)
class AttentionCall:
    """One call for attention by a module, with the other arguments that transformers' attention
    functions get, by name."""

    module: nn.Module
    query: Tensor  # [B, heads, T, d]
    key: Tensor  # [B, heads or fewer, T, d]
    value: Tensor
    told: Mapping[str, Any]


@contextmanager
def attending(model: Any, attend: Callable[[AttentionCall], Tensor]) -> Iterator[None]:
    """Compute all attention of a model by ``attend``, which returns [B, T, heads, d]. It takes the
    calls to transformers' attention interface, and to a method ``_attn`` such as GPT-J's. No masks
    are made."""

    def by_interface(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **told: Any
    ) -> tuple[Tensor, None]:
        return attend(AttentionCall(module, query, key, value, told)), None

    def by_method(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any
    ) -> tuple[Tensor, None]:
        options = {"scaling": 1.0 / float(module.scale_attn)}
        return attend(AttentionCall(module, query, key, value, options)).transpose(1, 2), None

    config = model.config
    name = f"cedit-{id(config)}"  # other models of the process may have their own
    parts = [config, *(getattr(config, part, None) for part in config.sub_configs)]
    before = [(part, part._attn_implementation) for part in parts if part is not None]
    with ExitStack() as stack:
        for module in model.modules():
            if hasattr(module, "_attn") and hasattr(module, "scale_attn"):
                stack.enter_context(standing_in(module, "_attn", partial(by_method, module)))
        ALL_ATTENTION_FUNCTIONS[name] = by_interface
        config._attn_implementation = name
        try:
            yield
        finally:
            for part, implementation in before:
                part._attn_implementation = implementation
            del ALL_ATTENTION_FUNCTIONS[name]


class _Cut(BaseException):
    """The exception that ends a forward pass on purpose."""


@contextmanager
def cut_short(module: nn.Module) -> Iterator[None]:
    """End a forward pass as the module returns, after the hooks that were there before."""

    def hook(_: nn.Module, __: Any, ___: Any) -> None:
        raise _Cut

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def run_until_cut(forward: Callable[[], object]) -> None:
    """Run a forward pass that may be cut short."""
    with suppress(_Cut):
        forward()


def count_on(model: nn.Module) -> int:
    """Count the hooks and the stand-ins for a forward on a model and its parts, now."""
    count = 0
    for module in model.modules():
        count += len(module._forward_hooks) + len(module._forward_pre_hooks)
        count += "forward" in module.__dict__
    return count


def _watch(
    module: nn.Module, key: ModuleName, see: Callable[[ModuleName, Call], None], first: bool
) -> RemovableHandle:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        see(key, Call(args, kwargs, output))

    return module.register_forward_hook(hook, with_kwargs=True, prepend=first)
