"""Stand-ins for a model's layers that are faster over many passes of few rows.

`torch.set_float32_matmul_precision("medium")` lets a CPU with units for bfloat16 multiply float32
matrices there, but rounds all weights anew in each product: for the few rows of a search that takes
longer than the product does. Here the weights are rounded once, and the activations between an
FFN's matrices stay rounded. The output of every layer is rounded, too, except the head's: its
logits are large, and a loss is a small difference of them.

GELU's tanh form, which transformers writes out in eight steps, is one function in PyTorch.

Knows linear layers and activations by their behaviour; leaves the structure of models to `anatomy`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from continual import hooks
from continual.anatomy import Anatomy, sample_inputs
from continual.passes.packing import ROWS_MAX, filled_up
from continual.storage import obstacle

Forward = Callable[[Tensor], Tensor]
CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
CACHED_MAX = 128
"""Products that oneDNN, and PyTorch on top of it, keep ready for more of the same shape: enough for
`packing.ROWS` in a block's layers, both ways. The head's products come in any size, and the default
of 1,024 can take gigabytes."""
GRID = 8.0  # outside [-8, 8] both functions are straight lines
GRID_POINTS = 1025
GRID_TOLERANCE = 1e-5


class QuickLayers:
    """Stand-ins for the layers above one block, with the weights as they are now.

    They replace no layer where that gains nothing: on another device than a CPU, on a CPU without
    units for bfloat16, or with other weights than float32.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, block: int) -> None:
        for name in CACHES:  # read at the first such product
            os.environ.setdefault(name, str(CACHED_MAX))
        upper_blocks = range(block + 1, anatomy.block_count)
        modules = [module for i in upper_blocks for module in anatomy.block(model, i).modules()]
        self.are_rounded = any(map(_is_linear, modules))
        """True if the products of the blocks are in bfloat16."""
        upward = {id(up) for i in upper_blocks for up in anatomy.up_modules(model, i)}
        stand_ins: list[tuple[nn.Module, Forward]] = [
            *((module, _TANH_GELU) for module in modules if _is_tanh_gelu(module)),
            *((m, _head(m)) for m in anatomy.tail_modules(model) if _is_linear(m)),
        ]
        for narrow in (torch.bfloat16, torch.float32):  # the format of an FFN's activations
            products_ = [
                (module, _product(module, narrow if id(module) in upward else torch.float32))
                for module in modules
                if _is_linear(module)
            ]
            self._stand_ins = [*products_, *stand_ins]
            if self._run(model):
                return
        self._stand_ins = []

    def _run(self, model: nn.Module) -> bool:
        """Tell whether the model runs with the stand-ins: an FFN may do more than activate."""
        try:
            with torch.no_grad(), self.on():
                model(**sample_inputs(model, 1))
        except (RuntimeError, ValueError, IndexError, TypeError):
            return False
        return True

    @contextmanager
    def on(self) -> Iterator[None]:
        """Run the model with the stand-ins while the `with` lasts."""
        with ExitStack() as stack:
            for module, forward in self._stand_ins:
                stack.enter_context(hooks.bypassed(module, forward))
            yield


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Multiply float32 matrices in this precision of `torch.set_float32_matmul_precision`."""
    default = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(default)


def _is_linear(module: nn.Module) -> bool:
    """Tell whether a module multiplies by a matrix that gains by being rounded once."""
    if not isinstance(module, nn.Linear | Conv1D) or "forward" in module.__dict__:
        return False
    weight = module.weight
    if obstacle(weight):
        return False
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and _has_units()


def _has_units() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _parts(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return a linear layer's weight [outputs, inputs] and bias."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
    return weight.detach().T if isinstance(module, Conv1D) else weight.detach(), bias


class _Product(torch.autograd.Function):
    """The product of rows and a matrix, both in bfloat16, with the gradient of the rows."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Return [.., outputs] in `dtype` from rows [.., inputs] and a weight [outputs, inputs]."""
        ctx.save_for_backward(weight)
        ctx.dtype = rows.dtype
        return _multiplied(rows, weight.T, bias, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the rows, and none for the rest."""
        (weight,) = ctx.saved_tensors
        return _multiplied(gradients[0], weight, None, ctx.dtype), None, None, None


def _multiplied(rows: Tensor, matrix: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Multiply rows [.., k] by a matrix [k, n] bfloat16, in parts of few different sizes."""
    result = rows.new_empty(*rows.shape[:-1], matrix.shape[1], dtype=dtype)
    parts = (tensor.flatten(0, -2).split(ROWS_MAX) for tensor in (rows, result))
    for part, into in zip(*parts, strict=True):
        rounded = _rounded(part, matrix.dtype)
        is_whole = into.dtype == matrix.dtype and len(into) == len(rounded)
        product = into if is_whole else rounded.new_empty(len(rounded), matrix.shape[1])
        if bias is None:
            torch.mm(rounded, matrix, out=product)
        else:
            torch.addmm(bias, rounded, matrix, out=product)
        if not is_whole:
            into.copy_(product[: len(into)])
    return result


def _rounded(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a part in this type, filled up with zero rows to a size of `packing.ROWS`."""
    size = filled_up(len(part))
    if size == len(part):
        return part.to(dtype)
    rounded = part.new_empty(size, part.shape[1], dtype=dtype)
    rounded[: len(part)] = part
    rounded[len(part) :] = 0
    return rounded


def _product(module: nn.Module, dtype: torch.dtype) -> Forward:
    """Return the layer's forward with weight and input in bfloat16, and output in `dtype`."""
    weight, bias = _parts(module)
    weight, bias = weight.bfloat16(), None if bias is None else bias.bfloat16()

    def forward(hidden: Tensor) -> Tensor:
        result: Tensor = _Product.apply(hidden, weight, bias, dtype)  # type: ignore[no-untyped-call]
        return result

    return forward


class _HeadProduct(torch.autograd.Function):
    """The head's product: its logits are not rounded, its gradient is computed in bfloat16."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, rounded: Tensor) -> Tensor:
        """Return the logits of hidden states, by a weight [outputs, inputs]."""
        ctx.save_for_backward(rounded)
        with products("medium"):
            return functional.linear(hidden, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the hidden states, and none for the rest."""
        (rounded,) = ctx.saved_tensors
        return _multiplied(gradients[0], rounded, None, torch.float32), None, None


def _head(module: nn.Module) -> Forward:
    """Return the head's forward with its gradient in bfloat16."""
    weight, bias = _parts(module)
    rounded = weight.bfloat16()

    def forward(hidden: Tensor) -> Tensor:
        logits: Tensor = _HeadProduct.apply(hidden, weight, rounded)  # type: ignore[no-untyped-call]
        return logits if bias is None else logits + bias

    return forward


_TANH_GELU: Forward = partial(functional.gelu, approximate="tanh")


@torch.no_grad()
def _is_tanh_gelu(module: nn.Module) -> bool:
    """Tell whether a module without parameters is GELU's tanh form, by its values on a grid."""
    name = type(module).__name__.lower()
    if "gelu" not in name or "forward" in module.__dict__ or any(module.parameters()):
        return False
    grid = torch.linspace(-GRID, GRID, GRID_POINTS)
    outputs = module(grid)
    error = (outputs - _TANH_GELU(grid)).abs().max() if isinstance(outputs, Tensor) else torch.inf
    return bool(error < GRID_TOLERANCE)
