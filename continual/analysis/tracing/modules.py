"""The modules whose outputs a trace restores, found by structure.

A state is a block's output. The FFN's output is that of its ``down`` matrix, and attention's that
of its last matrix: what each writes towards the residual sum. Some architectures add the sum inside
the module around it, so the output of that one would restore the state as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from continual.anatomy import Anatomy, observe, sample_inputs
from continual.anatomy.ffn import matrix_at
from continual.anatomy.module_paths import is_attention, is_inside
from continual.errors import ModelError

STATE, FFN, ATTENTION = "state", "ffn", "attention"
MODULES = (FFN, ATTENTION)
"""The kinds whose outputs are restored in windows of blocks, and held in the severed variant."""
SAMPLE_TOKENS = 3


@dataclass(frozen=True)
class RestorableModel:
    """A decoder with the modules whose outputs can be restored: one for each block, by kind."""

    model: Any
    anatomy: Anatomy
    modules: Mapping[str, Sequence[nn.Module]]

    @classmethod
    def of(cls, model: Any, anatomy: Anatomy) -> RestorableModel:
        """Find the modules. Raises ModelError for a model without a list of blocks."""
        if anatomy.is_one:
            raise ModelError(
                f"{type(model).__name__} has no list of blocks, whose states a trace could restore "
                "one by one."
            )
        blocks = range(anatomy.block_count)
        modules = {STATE: [anatomy.block(model, block) for block in blocks]}
        if anatomy.down is not None:
            modules[FFN] = [anatomy.down_module(model, block) for block in blocks]
        if (paths := _attention_outputs(model, anatomy)) is not None:
            modules[ATTENTION] = [model.get_submodule(path) for path in paths]
        return cls(model, anatomy, modules)

    @property
    def block_count(self) -> int:
        """The number of blocks, L."""
        return self.anatomy.block_count

    @property
    def embedding(self) -> nn.Module:
        """The table of token embeddings, on whose output the noise is added."""
        module = self.model.get_input_embeddings()
        assert isinstance(module, nn.Module)
        return module

    @property
    def embeddings(self) -> Tensor:
        """The token embeddings, [vocab, e]."""
        weight = self.embedding.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def device(self) -> torch.device:
        """The device that token ids go to."""
        return self.embeddings.device


def _attention_outputs(model: Any, anatomy: Anatomy) -> list[str] | None:
    """Return the path of the last matrix of each block's attention that gives states of the model's
    width; None unless every block has one."""
    ran = [path for path, _ in observe(model, sample_inputs(model, SAMPLE_TOKENS))]
    paths = []
    for index in range(anatomy.block_count):
        block_path = anatomy.block_path(index)
        block = anatomy.block(model, index)
        roots = [f"{block_path}.{p}" for p, m in block.named_modules() if p and is_attention(m)]
        matrices = [
            path
            for path in ran
            if is_inside(path, *roots) and _writes(model.get_submodule(path), anatomy.width)
        ]
        if not roots or not matrices:
            return None
        paths.append(matrices[-1])
    return paths


def _writes(module: nn.Module, width: int) -> bool:
    """Tell whether a module is a matrix that gives states of the model's width."""
    matrix = matrix_at("", module)
    return matrix is not None and matrix.outputs == width
