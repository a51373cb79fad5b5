"""The parameters of an edited model, each with the additions of its patches.

Knows the names of a parameter, tied ones included, and how a layer stores its matrix. Leaves the
sums themselves to ``effects.parameters``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from continual.anatomy import is_turned
from continual.anatomy.ffn import matrix_at
from continual.base import PretrainedBase
from continual.effects.factors import FactorsBeside, UnwritableMatrix
from continual.effects.parameters import EditedWeight, ParameterEdits
from continual.errors import ModelError
from continual.model.effects import ModelEffects
from continual.storage import obstacle, require_writable


class ModelParameters(ModelEffects):
    """The part of an edited model that adds to its parameters."""

    def __init__(self, base: PretrainedBase) -> None:
        super().__init__(base)
        self._is_trained = False  # its parameters may be other than its patches say

    def weight(self, block: int) -> ParameterEdits:
        """Return the FFN's output matrix of a block as [d_ff, d], with the additions to it."""
        self._require_block(block)
        return self.parameter(self.anatomy.down_path(block))

    def parameter(self, path: str) -> ParameterEdits:
        """Return the parameter at a path, with the additions to it: one object for all of its
        names. Additions to a matrix that nothing can be written into stand beside it.

        Raises ModelError if there is none, or if nothing can be written into it and it is no matrix
        of a linear layer.
        """
        name = self._names(path)[0]
        existing_sum = self._effects.get(_sum_of(name))
        if isinstance(existing_sum, ParameterEdits):
            return existing_sum
        return self._add(_sum_of(name), self._seen(name))

    def matrix(self, path: str) -> ParameterEdits:
        """Return the matrix at a path as [inputs, outputs], with the additions to it: the weight of
        one linear or embedding layer.

        Raises ModelError if there is none, or if a product of factors cannot edit it: it is tied to
        another, does not have two dimensions, or is of a layer not known to multiply by it.
        """
        names = self._names(path)
        if len(names) > 1:
            tied_names = ", ".join(name for name in names if name != path)
            raise ModelError(
                f"The matrix {path} is tied: {tied_names} is the same parameter, and an update by "
                "factors would move both. Edit a matrix of its own, or take a dense patch."
            )
        parameter = self.model.get_parameter(path)
        if parameter.ndim != 2:
            raise ModelError(
                f"{path} is of shape {tuple(parameter.shape)}, no matrix: an update by factors "
                "needs the weight of a linear layer."
            )
        if is_turned(self.model, path) is None:
            raise ModelError(
                f"{path} is no weight of a linear layer, so that nothing says which of its "
                "dimensions the inputs are: choose another matrix, or a dense patch."
            )
        return self.parameter(path)

    @property
    def edited_parameters(self) -> dict[str, Tensor]:
        """Return the edited parameters by all of their names: base and additions, float32, in the
        model's own form."""
        return {
            name: effect.turned(effect.sum)
            for names in {id(names): names for names in self._named.values()}.values()
            if isinstance(effect := self._effects.get(_sum_of(names[0])), EditedWeight)
            and effect.size
            for name in names
        }

    def block_of(self, path: str) -> int:
        """Return the first block whose output depends on the parameter at a path."""
        return self.anatomy.lowest_block(self._names(path))

    def is_beside(self, path: str) -> bool:
        """Tell whether additions to the parameter at a path stand beside it."""
        return bool(obstacle(self.model.get_parameter(path)))

    def _seen(self, name: str) -> ParameterEdits:
        turned = bool(is_turned(self.model, name))
        weight = self.model.get_parameter(name)
        if obstacle(weight):
            return FactorsBeside(self._unwritable(name), self.block_of(name), is_turned=turned)
        return EditedWeight(weight.T if turned else weight, self.block_of(name), is_turned=turned)

    def _unwritable(self, path: str) -> UnwritableMatrix:
        """Return the matrix of a linear layer that nothing can be written into. Raises ModelError
        for any other parameter."""
        reason = obstacle(self.model.get_parameter(path))
        parent, _, name = path.rpartition(".")
        module = self.model.get_submodule(parent)
        matrix = matrix_at(parent, module) if name == "weight" else None
        if matrix is None:
            raise ModelError(
                f"{path} {reason}, and is no matrix of a linear layer, which an update could stand "
                "beside: choose another editor, or a base that fits in memory."
            )
        dtype = self.model.get_input_embeddings().weight.dtype
        return UnwritableMatrix(path, module, (matrix.inputs, matrix.outputs), dtype, reason)

    def _names(self, path: str) -> Sequence[str]:
        """Return all names of the parameter at a path: tied ones have several."""
        if path not in self._named:
            raise ModelError(
                f"A patch is for the parameter {path}, which the model does not have: it was made "
                "on another model."
            )
        return self._named[path]

    @cached_property
    def _named(self) -> Mapping[str, Sequence[str]]:
        names: dict[int, list[str]] = {}
        named: dict[str, Sequence[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            named[name] = names.setdefault(id(parameter), [])
            names[id(parameter)].append(name)
        return named

    @contextmanager
    def trained(self, paths: Iterable[str]) -> Iterator[dict[str, torch.nn.Parameter]]:
        """Give the model's own parameters at these paths, by their first names, to change and
        differentiate within `with`; afterwards they are as before. Raises ModelError for one that
        nothing can be written into."""
        names = dict.fromkeys(self._names(path)[0] for path in paths)
        parameters = {name: self.model.get_parameter(name) for name in names}
        require_writable(parameters, "This editor")
        weights = [self.parameter(name) for name in names]
        self._is_trained = True
        try:
            for parameter in parameters.values():
                parameter.requires_grad_(True)
            yield parameters
        finally:
            self._is_trained = False
            for parameter in parameters.values():
                parameter.requires_grad_(False)
                parameter.grad = None
            for weight in weights:
                weight.restore()


def _sum_of(path: str) -> str:
    """Return the name of the effect of additions to a parameter."""
    return f"sum of {path}"
