"""Neuron patches: extra key-value pairs beside the FFN of one block (Huang et al. 2023, eq. 3-4).

    FFN_p(q) = FFN(q) + relu(q·K + b)·V

The gate is ReLU whatever the model's own activation is, so a silent neuron changes nothing, bit for
bit. `NeuronPatch` is what a step adds; `NeuronBank` holds all of a model's neurons at one block, in
the order in which they came, and is what the model is run with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from continual import hooks
from continual.errors import EditError
from continual.patches.owners import others_places, require_owners
from continual.queries.coded_rows import CodedRows
from continual.queries.growing import GrowingTensor
from continual.reading import RowTexts, named_in

ROUNDING = 2.0**-14
"""More than float32 loses in an activation, as a share of ‖q‖‖k‖."""
ACTIVATIONS_MAX = 2**20  # in one piece: what the cache of a CPU holds
ACCELERATED_ACTIVATIONS_MAX = 2**24  # on a device that waits for work rather than for memory
FEW = 16  # neurons
CODED_MIN = 2048
"""Neurons that codes are kept of, where a CPU looks for those that fire: fewer are scored at
once."""


class Mountable(Protocol):
    """What a neuron patch needs of the model that it is put on."""

    def bank(self, block: int) -> NeuronBank:
        """The neurons at a block."""


@dataclass(frozen=True)
class NeuronPatch:
    """n neurons at the FFN of one block; float32."""

    kind: ClassVar[str] = "neuron"

    block: int
    keys: Tensor  # [n, d]
    bias: Tensor  # [n]
    values: Tensor  # [n, d]
    owners: tuple[str, ...] = ()  # [n] the request that each neuron is for, where it is known
    subjects: tuple[
        str, ...
    ] = ()  # [n] normalised; where one is not empty, the text has to name it

    @property
    def rows(self) -> int:
        """How many neurons."""
        return len(self.keys)

    @property
    def weight_blocks(self) -> tuple[int, ...]:
        """None."""
        return ()

    def tensors(self) -> dict[str, Tensor]:
        """keys, bias and values."""
        return {"keys": self.keys, "bias": self.bias, "values": self.values}

    def meta(self) -> dict[str, Any]:
        """The block, and the subjects of neurons that ask for one."""
        return {"block": self.block, **({"subjects": self.subjects} if any(self.subjects) else {})}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Self:
        """See `Patch.from_tensors`."""
        try:
            return cls(
                int(meta["block"]),
                tensors["keys"],
                tensors["bias"],
                tensors["values"],
                subjects=tuple(meta.get("subjects", ())),
            )
        except KeyError as error:
            raise EditError(
                f"A neuron patch has no {error}: its file is not one of ours."
            ) from None

    def put_on(self, model: Mountable) -> Sequence[Tensor]:
        """See `Patch.put_on`."""
        return model.bank(self.block).extend(self)

    def norm(self) -> float:
        """The largest norm of a value."""
        return float(self.values.norm(dim=1).max()) if len(self.values) else 0.0

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> list[NeuronPatch]:
        """See `Patch.joined`."""
        blocks = dict.fromkeys(part.block for part in parts)
        return [_concatenated([part for part in parts if part.block == b]) for b in blocks]

    def firing(self, queries: Tensor, texts: RowTexts | None = None) -> Firing:
        """Its neurons that fire on one of the queries [r, d] behind these texts; places count from
        its first."""
        places = torch.arange(len(self.keys), device=queries.device)
        firing = _firing(queries.to(self.keys.dtype), places, self.keys, self.bias)
        return _asked(firing, self.subjects, texts)

    def without(self, request_id: str) -> NeuronPatch | None:
        """See `Patch.without`."""
        kept = others_places(self.owners, request_id)
        if len(kept) == len(self.owners):
            return self
        if not kept:
            return None
        return replace(
            self,
            keys=self.keys[kept],
            bias=self.bias[kept],
            values=self.values[kept],
            owners=tuple(self.owners[place] for place in kept),
            subjects=tuple(self.subjects[place] for place in kept) if self.subjects else (),
        )

    def owned_by(self, owners: tuple[str, ...]) -> NeuronPatch:
        """See `Patch.owned_by`."""
        require_owners(owners, len(self.keys), "neurons")
        return replace(self, owners=owners)

    def check(self) -> None:
        """See `Patch.check`."""
        count = self.keys.shape[:1]
        if self.keys.ndim != 2 or self.bias.shape != count or self.values.shape != self.keys.shape:
            raise EditError(
                f"A neuron patch does not fit together: keys {tuple(self.keys.shape)}, bias "
                f"{tuple(self.bias.shape)}, values {tuple(self.values.shape)}."
            )
        if self.subjects and len(self.subjects) != len(self.keys):
            raise EditError(
                f"A neuron patch has {len(self.subjects)} subjects for {len(self.keys)} neurons: "
                "its file is not one of ours."
            )
        for name, tensor in self.tensors().items():
            if tensor.dtype != torch.float32 or not _is_finite(tensor):
                raise EditError(f"The {name} of a neuron patch are not all finite float32 numbers.")


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are: the largest is, and NaN counts as larger."""
    return not tensor.numel() or math.isfinite(torch.linalg.vector_norm(tensor, math.inf))


def _concatenated(parts: Sequence[NeuronPatch]) -> NeuronPatch:
    subjects = tuple(s for part in parts for s in part.subjects or ("",) * len(part.keys))
    return NeuronPatch(
        parts[0].block,
        torch.cat([part.keys for part in parts]),
        torch.cat([part.bias for part in parts]),
        torch.cat([part.values for part in parts]),
        subjects=subjects if any(subjects) else (),
    )


@dataclass(frozen=True)
class Firing:
    """Neurons that fire on some queries."""

    places: Tensor  # [f] in the bank, ascending
    activations: Tensor  # [r, f] relu(q·k + b)

    def __len__(self) -> int:
        return len(self.places)

    def of_first(self, count: int) -> Firing:
        """Those that fire on the first so many of the queries."""
        if count == len(self.activations):
            return self
        activations = self.activations[:count]
        fires = (activations > 0).any(0)
        return Firing(self.places[fires], activations[:, fires])

    def followed_by(self, later: Firing) -> Firing:
        """These, and others that come after them, on the same queries."""
        if not len(later):
            return self
        return Firing(
            torch.cat([self.places, later.places]),
            torch.cat([self.activations, later.activations], 1),
        )


def _firing(queries: Tensor, places: Tensor, keys: Tensor, bias: Tensor) -> Firing:
    """Which of the neurons at these places fire on one of the queries [r, d].

    Activations are taken in float64: they are the same whatever else is asked, and however many
    neurons came later.
    """
    scores = queries.double() @ keys.double().T + bias.double()
    fires = (scores > 0).any(0)
    return Firing(places[fires], torch.relu(scores[:, fires]).to(queries.dtype))


def _asked(firing: Firing, subjects: Sequence[str], texts: RowTexts | None) -> Firing:
    """The neurons that fire where the text names the subject that they ask for, of `subjects` by
    their places; none where no neuron asks for one."""
    if not subjects or not len(firing):
        return firing
    wanted = [(column, subjects[place]) for column, place in enumerate(firing.places.tolist())]
    activations = firing.activations
    for column, subject in wanted:
        if subject:
            rows = (activations[:, column] > 0).nonzero().flatten()
            named = torch.tensor(named_in(texts, rows.tolist(), subject), dtype=torch.bool)
            activations = activations.clone()
            activations[rows[~named.to(rows.device)], column] = 0.0
    fires = (activations > 0).any(0)
    return Firing(firing.places[fires], activations[:, fires])


def _unread(_rows: int) -> RowTexts | None:
    """No texts: for neurons that ask for no subject."""
    return None


class NeuronBank:
    """All neurons at one block. Growing costs what is added; going back is cutting the end off."""

    def __init__(self, width: int, device: torch.device) -> None:
        rows = torch.empty(0, width, device=device)
        self._keys, self._values = GrowingTensor(rows), GrowingTensor(rows)
        self._bias = GrowingTensor(rows[:, 0])
        self._subjects: list[str] = []  # of each neuron; empty for one that asks for none
        self._longest = 0.0  # of all keys that there ever were
        self._codes: CodedRows | None = None

    @property
    def size(self) -> int:
        """How many neurons are on."""
        return len(self._bias)

    @property
    def keys(self) -> Tensor:
        """[size, d]"""
        return self._keys.rows

    @property
    def bias(self) -> Tensor:
        """[size]"""
        return self._bias.rows

    @property
    def values(self) -> Tensor:
        """[size, d]"""
        return self._values.rows

    def extend(self, patch: NeuronPatch) -> tuple[Tensor, Tensor, Tensor]:
        """Append a patch's neurons; returns them as they now stand in the bank.

        Raises EditError where they are of another width than the model.
        """
        if patch.keys.shape[1:] != self.keys.shape[1:]:
            raise EditError(
                f"A neuron patch is of width {tuple(patch.keys.shape[1:])}, the model of "
                f"{tuple(self.keys.shape[1:])}: it was made on another model."
            )
        if len(patch.keys):
            lengths: Tensor = torch.linalg.vector_norm(patch.keys, dim=1)
            self._longest = max(self._longest, float(lengths.max()))
            if self._codes is not None:
                self._codes.append(patch.keys)
        del self._subjects[self.size :]
        self._subjects += patch.subjects or ("",) * len(patch.keys)
        return (
            self._keys.append(patch.keys),
            self._bias.append(patch.bias),
            self._values.append(patch.values),
        )

    def truncate(self, size: int) -> None:
        """Forget all neurons but the first `size`."""
        for part in (self._keys, self._bias, self._values):
            part.truncate(size)
        if self._codes is not None:
            self._codes.truncate(size)

    @property
    def subjects(self) -> Sequence[str]:
        """[size] the subject that each neuron asks for; empty for none. They stay in their places
        while neurons are silenced for a time, and are written over when others come."""
        return self._subjects[: self.size]

    def firing(self, queries: Tensor, first: int = 0, texts: RowTexts | None = None) -> Firing:
        """The neurons, from `first` on, that fire on one of the queries [r, d], which stand behind
        these texts. Raises ValueError for queries without texts where a neuron asks for one."""
        asked = queries.to(self.keys.dtype)
        near = self._nearly_firing(asked.detach(), first)
        if not len(near):
            return Firing(near, asked[:, :0])
        firing = _firing(asked, near, self.keys[near], self.bias[near])
        return _asked(firing, self._subjects, texts)

    def _nearly_firing(self, queries: Tensor, first: int) -> Tensor:
        """The neurons, from `first` on, that may fire, by a product in float32 or of codes; all of
        a few."""
        if self.size - first <= FEW or not len(queries):
            return torch.arange(first, self.size, device=queries.device)
        longest = float(torch.linalg.vector_norm(queries, dim=1).max())
        highest = self._bounds(queries, first).amax(0) + self.bias[first:]
        silent = highest <= -ROUNDING * longest * self._longest  # a NaN may be anything
        return (~silent).nonzero().squeeze(-1) + first

    def _bounds(self, queries: Tensor, first: int) -> Tensor:
        """[r, size - first] what q·k is at most."""
        if self.size - first < CODED_MIN or queries.device.type != "cpu":
            return queries @ self.keys[first:].T
        if self._codes is None:
            self._codes = CodedRows(self.keys[0])
            self._codes.append(self.keys)
        return self._codes.bounds(queries)[:, first:]

    def contribution(self, queries: Tensor, texts: RowTexts | None = None) -> Tensor | None:
        """What the neurons add to the FFN's output for queries [.., d]; None where all are silent.

        Only neurons that fire enter the sum, in their order.
        """
        if self.size == 0 or queries.numel() == 0:
            return None
        is_cpu = queries.device.type == "cpu"
        most = ACTIVATIONS_MAX if is_cpu else ACCELERATED_ACTIVATIONS_MAX
        rows = max(1, most // self.size)
        parts = queries.flatten(0, -2).split(rows)
        firsts = range(0, rows * len(parts), rows)
        found = [
            self.firing(part, texts=None if texts is None else texts.take(slice(i, i + rows)))
            for i, part in zip(firsts, parts, strict=True)
        ]
        if not any(len(firing) for firing in found):
            return None
        return torch.cat([self.summed(firing) for firing in found]).view(queries.shape)

    def summed(self, firing: Firing) -> Tensor:
        """[r, d] what these add to the FFN's output."""
        return firing.activations @ self.values[firing.places]

    @contextmanager
    def attached(
        self,
        query_module: nn.Module,
        down_module: nn.Module,
        read: Callable[[int], RowTexts | None] = _unread,
    ) -> Iterator[None]:
        """The block's FFN runs with the neurons while this lasts; `read` gives the texts behind
        which the rows of the pass under way stand, by their number."""
        queries: list[Tensor] = []

        def see(_: int, call: hooks.Call) -> None:
            queries[:] = [call.input]

        def add(output: Tensor) -> Tensor:
            asks = any(self.subjects)
            texts = read(queries[0].shape[:-1].numel()) if asks else None
            extra = self.contribution(queries[0], texts)
            return output if extra is None else output + extra.to(output.dtype)

        with ExitStack() as stack:
            stack.enter_context(hooks.watched({0: query_module}, see))
            stack.enter_context(hooks.altered(down_module, add))
            yield
