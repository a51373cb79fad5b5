"""Editor networks: trained maps from the rows of an edit to the update of each matrix.

The common part of MEND, KE and MALMEN: the form of their inputs and outputs, and the low-rank
residual blocks. Leaves training to ``training``, and files to ``trained``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from continual.gradients.normaliser import Normaliser
from continual.gradients.side_paths import SidePath
from continual.task_model import TaskModel
from continual.tasks import Encoding

Shape = tuple[int, int]
"""[inputs, outputs] of a matrix."""


@dataclass(frozen=True)
class NetworkInput:
    """One edit as a network reads it."""

    rows: Mapping[str, Tensor]  # by path [n, inputs + outputs] float32: h, and beside it g
    condition: Tensor | None = None  # [tokens, d] float32: the edit as word embeddings; see KE


@dataclass(frozen=True)
class NetworkForm:
    """The matrices that a network edits, and its size."""

    shapes: Mapping[str, Shape]  # by path, in the order in which they run
    rank: int

    @property
    def distinct(self) -> list[Shape]:
        """The shapes, each once."""
        return list(dict.fromkeys(self.shapes.values()))


class EditorNetwork(nn.Module, ABC):
    """A map from the rows of some edits to factors of each matrix's update."""

    method: ClassVar[str]

    def __init__(self, form: NetworkForm) -> None:
        super().__init__()
        self.form = form

    @classmethod
    def condition(cls, task_model: TaskModel, encoding: Encoding) -> Tensor | None:
        """Return what the network reads of an edit besides its rows, on the model as it stands;
        None as a rule."""
        return None

    @classmethod
    def size(cls, task_model: TaskModel, rank: int) -> int:
        """Return the `rank` of the form for a model, from the one that is asked for."""
        return rank

    @abstractmethod
    def side_paths(self, edits: Sequence[NetworkInput]) -> dict[str, SidePath]:
        """Return the factors of each matrix by path: one for each edit, or one for all."""

    @abstractmethod
    def loss(self, inside: Tensor, divergence: Tensor) -> Tensor:
        """Return the loss of training, from -log p of the new answers and KL on other texts."""

    def score(self, inside: Tensor, divergence: Tensor) -> Tensor:
        """Return the loss on held-out edits, by which the best epoch is chosen."""
        return self.loss(inside, divergence)

    def prepare(self, edits: Sequence[NetworkInput]) -> None:
        """Begin training with the rows of all edits to learn from."""
        return None

    def follow(self, divergence: float) -> None:
        """Take note of the KL of a training step."""
        return None

    def end_epoch(self, inside: float) -> None:
        """Take note of the share of held-out edits that succeed, at the end of an epoch."""
        return None


class NormalisedNetwork(EditorNetwork):
    """A network that reads rows normalised over the rows of its training, for each shape."""

    def __init__(self, form: NetworkForm) -> None:
        super().__init__(form)
        for number, shape in enumerate(form.distinct):
            self.register_buffer(f"mean_{number}", torch.zeros(sum(shape)))
            self.register_buffer(f"deviation_{number}", torch.ones(sum(shape)))

    def prepare(self, edits: Sequence[NetworkInput]) -> None:
        """Take the statistics of the rows. A coordinate that is the same in all of them says
        nothing: its deviation is infinite, and it is normalised to zero."""
        for number, shape in enumerate(self.form.distinct):
            paths = [path for path, of_path in self.form.shapes.items() if of_path == shape]
            statistics = Normaliser.of([edit.rows[path] for edit in edits for path in paths])
            deviation = statistics.deviation.float()
            deviation[deviation == 0] = torch.inf
            getattr(self, f"mean_{number}").copy_(statistics.mean)
            getattr(self, f"deviation_{number}").copy_(deviation)

    def normalised(self, path: str, rows: Tensor) -> Tensor:
        """Return rows [n, inputs + outputs], normalised by the statistics of their shape."""
        number = self.form.distinct.index(self.form.shapes[path])
        mean, deviation = (getattr(self, f"{part}_{number}") for part in ("mean", "deviation"))
        normalised: Tensor = (rows - mean) / deviation
        return normalised


class ResidualBlock(nn.Module):
    """One low-rank residual block for all matrices of a shape, with a scale and an offset of each.

    As in MEND, x + ReLU(s ⊙ (x·A·B + b) + t), or as in MALMEN, x + s ⊙ ReLU(x·A·B + b) + t.
    With B = 0 and b = t = 0, as at the start, it is the identity.
    """

    def __init__(self, width: int, rank: int, matrices: int, *, scales_inside: bool) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(width, rank))  # A
        self.up = nn.Parameter(torch.zeros(rank, width))  # B
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(matrices, width))
        self.offset = nn.Parameter(torch.zeros(matrices, width))
        self._scales_inside = scales_inside

    def forward(self, rows: Tensor, matrix: int) -> Tensor:
        """Return rows [n, width] of a matrix, transformed. At zero the ReLU's gradient is 1, so
        that the identity can be left."""
        mixed = rows @ self.down @ self.up + self.bias
        scale, offset = self.scale[matrix], self.offset[matrix]
        if self._scales_inside:
            return rows + (scale * mixed + offset).clamp(min=0)
        return rows + scale * mixed.clamp(min=0) + offset


class ResidualStack(nn.Module):
    """Residual blocks for each shape of matrices."""

    def __init__(self, form: NetworkForm, blocks: int, *, scales_inside: bool) -> None:
        super().__init__()
        self._form = form
        self.stacks = nn.ModuleList(
            nn.ModuleList(
                ResidualBlock(
                    sum(shape),
                    min(form.rank, sum(shape)),
                    list(form.shapes.values()).count(shape),
                    scales_inside=scales_inside,
                )
                for _ in range(blocks)
            )
            for shape in form.distinct
        )

    def forward(self, path: str, rows: Tensor) -> Tensor:
        """Return the transformed rows [n, inputs + outputs] of a matrix."""
        shape = self._form.shapes[path]
        alike = [name for name, of_name in self._form.shapes.items() if of_name == shape]
        stack = self.stacks[self._form.distinct.index(shape)]
        assert isinstance(stack, nn.ModuleList)
        for block in stack:
            rows = block(rows, alike.index(path))
        return rows


def padded(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Stack matrices whose sizes differ in one dimension, filled up with zeros there."""
    longest = max(part.shape[dim] for part in parts)
    whole = []
    for part in parts:
        shape = list(part.shape)
        shape[dim] = longest - part.shape[dim]
        whole.append(torch.cat([part, part.new_zeros(shape)], dim))
    return torch.stack(whole)
