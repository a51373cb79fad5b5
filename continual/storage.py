"""The storage of a model's parameters: plain numbers, packed in a few bits, or away on a disk.

A packed matrix (bitsandbytes, torchao) has no numbers that an edit could be added to, and one that
accelerate fetches for each of its products is nowhere between them. Neither is ever written into.
Knows parameters and the hooks that accelerate puts on modules; leaves edits to `effects`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from continual.errors import ModelError

BESIDE_PACKED = "tpatcher, lookup, grace, serac, ike, memit, emmet, alphaedit and rome"
"""The editors that write nothing into the matrices of a model."""


def obstacle(parameter: Tensor) -> str:
    """Return the reason why nothing can be written into a parameter; empty if it is plain numbers
    in memory."""
    if parameter.is_meta:
        return "is kept away from its device (offloaded)"
    if is_packed(parameter):
        return f"is packed ({_kind(parameter)})"
    return ""


def is_packed(tensor: Tensor) -> bool:
    """Tell whether a tensor's numbers are packed, in other tensors or in whole numbers."""
    return is_traceable_wrapper_subclass(tensor.data) or not tensor.is_floating_point()


def is_plain(model: nn.Module) -> bool:
    """Tell whether all parameters of a model are plain numbers in memory."""
    return not any(map(obstacle, model.parameters()))


def has_packed(model: nn.Module) -> bool:
    """Tell whether a model has a packed parameter."""
    return any(map(is_packed, model.parameters()))


def inner_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a tensor is made of, in a fixed order; of a plain one, itself.

    A matrix of bitsandbytes has further ones in its module's `state_dict`.
    """
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from inner_tensors(getattr(tensor, name))


def device_of(module: nn.Module) -> torch.device:
    """Return the device on which a module with parameters runs, wherever these lie meanwhile."""
    for hook in _hooks_of(module):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


def input_device(model: Any) -> torch.device:
    """Return the device on which a model takes its token ids."""
    return device_of(model.get_input_embeddings())


@contextmanager
def at_hand(module: nn.Module) -> Iterator[None]:
    """Have the own parameters of a module in memory within `with`: to be read, and not written."""
    hooks = [hook for hook in _hooks_of(module) if getattr(hook, "offload", False)]
    for hook in hooks:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for hook in reversed(hooks):
            hook.post_forward(module, None)


def require_writable(names: dict[str, Tensor], editor: str) -> None:
    """Raise ModelError, for an editor by its name, if it would write into a parameter that is no
    plain numbers in memory."""
    for name, parameter in names.items():
        if reason := obstacle(parameter):
            raise ModelError(
                f"{editor} changes parameters as a whole, and {name} {reason}: nothing is written "
                f"into it. Choose an editor whose edits stand beside it: {BESIDE_PACKED}; or a "
                "base in float32, bfloat16 or float16, on one device."
            )


def _kind(tensor: Tensor) -> str:
    kind = type(tensor.data)
    if kind is Tensor:
        kind = type(tensor)
    return kind.__name__ if kind is not nn.Parameter else str(tensor.dtype).removeprefix("torch.")


def _hooks_of(module: nn.Module) -> tuple[Any, ...]:
    """Return the hooks of accelerate on a module."""
    hook = getattr(module, "_hf_hook", None)
    return tuple(getattr(hook, "hooks", (hook,))) if hook is not None else ()
