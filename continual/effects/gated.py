"""Gated neurons at one place, as a running model has them (Huang et al. 2023, eq. 3-4).

    FFN_p(q) = FFN(q) + relu(q·K + b)·V

This is the place of the paper, the FFN of one block; see `places` for the others. The gate is ReLU
whatever the model's own activation is, so a silent neuron changes nothing, bit for bit. Knows all
neurons at one place, in the order in which they came; leaves files and owners to `patches.neuron`.
Every effect with gates hooks a model by a `Mount`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from continual import hooks
from continual.effects import CONTEXTS, GATES, NEURONS, SUBJECTS, KeptQueries, Reach
from continual.effects.context import Context, with_context
from continual.effects.hearing import Ear, OpenRows
from continual.effects.places import INPUTS, GatePlace
from continual.errors import EditError, ModelError
from continual.queries.coded_rows import CodedRows
from continual.queries.growing import GrowingTensor
from continual.reading import RowTexts, named_in

ROUNDING = 2.0**-14
"""More than float32 loses in an activation, as a share of ‖q‖‖k‖."""
ACTIVATIONS_MAX = 2**20  # in one piece: these fit in the cache of a CPU
ACCELERATED_ACTIVATIONS_MAX = 2**24  # on a device that waits for work rather than for memory
FEW = 16  # neurons
CODED_MIN = 2048
"""From this number of neurons on, a CPU keeps their codes to find those that fire; fewer neurons
are scored at once."""


class GatedNeurons(Protocol):
    """The neurons of a patch to put on."""

    @property
    def keys(self) -> Tensor:
        """The keys, [n, d]."""

    @property
    def bias(self) -> Tensor:
        """The biases, [n]."""

    @property
    def values(self) -> Tensor:
        """The values, [n, d]."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subject that each neuron asks for, [n], "" for none; or an empty tuple if no neuron
        asks for any."""


OutputChange = Callable[[Tensor, Tensor], Tensor]
"""Queries [.., d], and the output [.., d] on which values land → that output with the values."""


@dataclass(frozen=True)
class Mount:
    """A place in a model: the modules to hook, and the texts of the pass under way."""

    place: GatePlace
    width: int
    device: torch.device  # where values land
    modules: tuple[nn.Module, nn.Module]  # one shows the query, values land on the other's output
    pool: Callable[[Tensor], Tensor] | None = None  # states [B, T, d] → their running means
    texts: Callable[[int], RowTexts | None] = lambda _rows: None
    """The texts before the rows of the pass under way, given the number of rows."""
    context: Context | None = None  # of the queries, for a key with context
    is_site: bool = True  # the last place of the model: only there neurons may ask for a subject
    key_width: int | None = None  # of the queries, where it is not that of the values

    @property
    def query_width(self) -> int:
        """The width of the queries."""
        return self.width if self.key_width is None else self.key_width

    @contextmanager
    def attached(self, is_on: Callable[[], bool], change: OutputChange) -> Iterator[None]:
        """Pass the landing's output through `change` within `with`, whenever the effect `is_on`;
        otherwise compute nothing."""
        landing = self.modules[1]
        queries: list[Tensor] = []

        def see(query: Tensor) -> None:
            queries[:] = [query]

        def land(output: Tensor) -> Tensor:
            if not is_on():
                return output
            if not queries:
                raise ModelError(
                    f"A pass comes to {self.place.landing} without {self.place.reading}, where a "
                    "gate that is on has its key: run whole passes."
                )
            return change(queries.pop(), output)

        with ExitStack() as stack:
            stack.enter_context(self._watched(is_on, see))
            stack.enter_context(hooks.altered(landing, land))
            yield

    @contextmanager
    def shown(self) -> Iterator[list[Tensor]]:
        """Collect the queries [.., d] of the passes that run within `with`, in order."""
        queries: list[Tensor] = []
        with self._watched(lambda: True, queries.append):
            yield queries

    @contextmanager
    def _watched(self, is_on: Callable[[], bool], see: Callable[[Tensor], None]) -> Iterator[None]:
        """Show `see` the queries [.., d] of each pass, whenever the effect `is_on`."""
        contexts: list[Tensor] = []

        def see_reader(_: int, call: hooks.Call) -> None:
            if is_on():
                see(self._query(call, contexts))

        def see_context(_: int, call: hooks.Call) -> None:
            assert self.context is not None
            contexts[:] = [self.context.means(call.input)] if is_on() else []

        with ExitStack() as stack:
            if self.context is not None:
                stack.enter_context(hooks.watched({0: self.context.module}, see_context))
            is_output = self.place.key not in INPUTS
            stack.enter_context(hooks.watched({0: self.modules[0]}, see_reader, first=is_output))
            yield

    def _query(self, call: hooks.Call, contexts: list[Tensor]) -> Tensor:
        """Return the query [.., d] that a call of the first module shows; it uses the context up.
        Raises ModelError for a pass that begins behind the context's block."""
        if self.place.key not in INPUTS:
            return call.hidden if self.pool is None else self.pool(call.hidden)
        if self.context is None:
            return call.input
        if not contexts:
            raise ModelError(
                f"A pass comes to {self.place.reading} without having run that block: run whole "
                "passes."
            )
        return with_context(call.input, contexts.pop())


@dataclass(frozen=True)
class Firing:
    """The neurons that fire on some queries, with their activations."""

    places: Tensor  # [f] in the bank, ascending
    activations: Tensor  # [r, f] relu(q·k + b)

    def __len__(self) -> int:
        return len(self.places)

    def of_first(self, count: int) -> Firing:
        """Return the neurons that fire on the first `count` queries."""
        if count == len(self.activations):
            return self
        activations = self.activations[:count]
        is_firing = (activations > 0).any(0)
        return Firing(self.places[is_firing], activations[:, is_firing])

    def followed_by(self, later: Firing) -> Firing:
        """Return these neurons and `later` ones of the bank, on the same queries."""
        if not len(later):
            return self
        return Firing(
            torch.cat([self.places, later.places]),
            torch.cat([self.activations, later.activations], 1),
        )


def firing_of(queries: Tensor, places: Tensor, keys: Tensor, bias: Tensor) -> Firing:
    """Find the neurons at these places that fire on one of the queries [r, d].

    Activations are computed in float64: they are the same whatever the other queries are, and
    however many neurons came later.
    """
    scores = queries.double() @ keys.double().T + bias.double()
    is_firing = (scores > 0).any(0)
    return Firing(places[is_firing], torch.relu(scores[:, is_firing]).to(queries.dtype))


def where_named(firing: Firing, subjects: Sequence[str], texts: RowTexts | None) -> Firing:
    """Return the firing neurons, silenced on rows whose text does not name the subject that they
    ask for. `subjects` are by the neurons' places, empty if no neuron asks for one."""
    if not subjects or not len(firing):
        return firing
    columns = [(column, subjects[place]) for column, place in enumerate(firing.places.tolist())]
    activations = firing.activations
    for column, subject in columns:
        if subject:
            rows = (activations[:, column] > 0).nonzero().flatten()
            is_named = torch.tensor(named_in(texts, rows.tolist(), subject), dtype=torch.bool)
            activations = activations.clone()
            activations[rows[~is_named.to(rows.device)], column] = 0.0
    is_firing = (activations > 0).any(0)
    return Firing(firing.places[is_firing], activations[:, is_firing])


def landing_on(output: Tensor, values: Tensor) -> Tensor:
    """Return values [.., d] of a pass in shape, dtype and device of the output that they land on:
    some blocks give their FFN flat rows."""
    return values.to(output).view(output.shape)


def kinds_of(place: GatePlace, subjects: Sequence[str]) -> list[str]:
    """Return the kind in `BESIDE` of neurons at a place, one for each of their subjects."""
    if not place.is_local:
        return [CONTEXTS if place.has_context else GATES] * len(subjects)
    return [SUBJECTS if subject else NEURONS for subject in subjects]


class NeuronBank:
    """All neurons at one place. Appending costs only the new neurons; going back cuts the end
    off."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        rows = torch.empty(0, mount.width, device=mount.device)
        self._keys, self._values = GrowingTensor(rows), GrowingTensor(rows)
        self._bias = GrowingTensor(rows[:, 0])
        self._subjects: list[str] = []  # of each neuron; empty for one that asks for none
        self._longest = 0.0  # the largest ‖k‖ of all keys ever appended
        self._ear = Ear()
        self._codes: CodedRows | None = None

    @property
    def place(self) -> GatePlace:
        """See `GatedEffect.place`."""
        return self._mount.place

    @property
    def size(self) -> int:
        """The number of neurons on the model."""
        return len(self._bias)

    @property
    def keys(self) -> Tensor:
        """The keys, [size, d]."""
        return self._keys.rows

    @property
    def bias(self) -> Tensor:
        """The biases, [size]."""
        return self._bias.rows

    @property
    def values(self) -> Tensor:
        """The values, [size, d]."""
        return self._values.rows

    @property
    def reads_texts(self) -> bool:
        """True if a neuron needs the text before a query, for its subject or its context."""
        return self.size > 0 and (self.place.has_context or any(self.subjects))

    def extend(self, patch: GatedNeurons) -> tuple[Tensor, Tensor, Tensor]:
        """Append a patch's neurons; return them as they now stand in the bank.

        Raises EditError if they are of another width than the model, or ask for a subject at a
        place where neurons cannot.
        """
        if patch.keys.shape[1:] != self.keys.shape[1:]:
            raise EditError(
                f"A neuron patch is of width {tuple(patch.keys.shape[1:])}, the model of "
                f"{tuple(self.keys.shape[1:])}: it was made on another model."
            )
        if any(patch.subjects) and not self._mount.is_site:
            raise EditError(
                f"Neurons at block {self.place.block} ask for a subject (from {self.place}), which "
                "those of the model's last place alone can. Leave asks_subject off for others; if "
                "these were made at the last place, [anatomy] context has changed: put it back."
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

    def require_way_back(self, size: int) -> None:
        """See `Effect.require_way_back`: every size can be reached."""

    def settle(self) -> None:
        """See `Effect.settle`: nothing is let go."""

    def reach(self, first: int = 0) -> Reach:
        """See `Effect.reach`."""
        return Reach(gates=frozenset({self.place} if self.size > first else ()))

    def may_differ(self, queries: KeptQueries, first: int) -> Tensor:
        """See `GatedEffect.may_differ`: True for queries that may open a new neuron."""
        may_open = torch.zeros(len(queries), dtype=torch.bool)
        keys, bias = self.keys[first:].cpu(), self.bias[first:].cpu()
        for key_block, floors in zip(keys.split(FEW), bias.split(FEW), strict=True):
            scores_max = queries.bounds(key_block) + floors[:, None]
            may_open |= ~(scores_max <= 0).all(0)  # a NaN may be anything
        return may_open

    @property
    def subjects(self) -> Sequence[str]:
        """The subject that each neuron asks for, [size]; "" for none. Subjects stay in their places
        while neurons are silenced for a time; `extend` writes over those of removed neurons."""
        return self._subjects[: self.size]

    def firing(self, queries: Tensor, first: int = 0, texts: RowTexts | None = None) -> Firing:
        """Find the neurons, from `first` on, that fire on one of the queries [r, d]; `texts` are
        the texts before the queries. Raises ValueError for queries without texts if a neuron asks
        for a subject."""
        inputs = queries.to(self.keys.dtype)
        candidates = self._nearly_firing(inputs.detach(), first)
        if not len(candidates):
            return Firing(candidates, inputs[:, :0])
        firing = firing_of(inputs, candidates, self.keys[candidates], self.bias[candidates])
        return where_named(firing, self._subjects, texts)

    def _nearly_firing(self, queries: Tensor, first: int) -> Tensor:
        """Return the places of neurons, from `first` on, that may fire, by a product in float32 or
        of codes. Returns all places if there are few."""
        if self.size - first <= FEW or not len(queries):
            return torch.arange(first, self.size, device=queries.device)
        norm_max = float(torch.linalg.vector_norm(queries, dim=1).max())
        scores_max = self._bounds(queries, first).amax(0) + self.bias[first:]
        is_silent = scores_max <= -ROUNDING * norm_max * self._longest  # a NaN may be anything
        return (~is_silent).nonzero().squeeze(-1) + first

    def _bounds(self, queries: Tensor, first: int) -> Tensor:
        """Return upper bounds [r, size - first] of q·k, up to float rounding."""
        if self.size - first < CODED_MIN or queries.device.type != "cpu":
            return queries @ self.keys[first:].T
        if self._codes is None:
            self._codes = CodedRows(self.keys[0])
            self._codes.append(self.keys)
        return self._codes.bounds(queries)[:, first:]

    def contribution(self, queries: Tensor, texts: RowTexts | None = None) -> Tensor | None:
        """Return the sum that the neurons add to the output for queries [.., d]; None if all are
        silent.

        Only neurons that fire enter the sum, in their order.
        """
        if self.size == 0 or queries.numel() == 0:
            return None
        is_cpu = queries.device.type == "cpu"
        activations_max = ACTIVATIONS_MAX if is_cpu else ACCELERATED_ACTIVATIONS_MAX
        rows = max(1, activations_max // self.size)
        parts = queries.flatten(0, -2).split(rows)
        starts = range(0, rows * len(parts), rows)
        firings = [
            self.firing(part, texts=None if texts is None else texts.take(slice(i, i + rows)))
            for i, part in zip(starts, parts, strict=True)
        ]
        if not any(len(firing) for firing in firings):
            return None
        return torch.cat([self.summed(firing) for firing in firings]).view(queries.shape)

    def summed(self, firing: Firing) -> Tensor:
        """Return the sum [r, d] that these neurons add to the FFN's output."""
        return firing.activations @ self.values[firing.places]

    def attached(self) -> AbstractContextManager[None]:
        """See `Effect.attached`: the values of the neurons land where they open."""
        return self._mount.attached(lambda: self.size > 0, self._added)

    def _added(self, queries: Tensor, output: Tensor) -> Tensor:
        """Return the output with the neurons' sum added."""
        has_subjects = any(self.subjects)
        texts = self._mount.texts(queries.shape[:-1].numel()) if has_subjects else None
        self._ear.hear(lambda: self._open_rows(queries, texts))
        addition = self.contribution(queries, texts)
        return output if addition is None else output + landing_on(output, addition)

    def heard(self) -> AbstractContextManager[list[OpenRows]]:
        """See `HeardEffect.heard`: neurons that fire, with their activations."""
        return self._ear.listening()

    def _open_rows(self, queries: Tensor, texts: RowTexts | None) -> OpenRows:
        rows = queries.detach().flatten(0, -2)
        firing = self.firing(rows, texts=texts)
        tokens, columns = (firing.activations > 0).nonzero(as_tuple=True)
        places, activations = firing.places[columns], firing.activations[tokens, columns]
        return OpenRows(len(rows), tokens, places, activations)

    @property
    def beside(self) -> Mapping[str, int]:
        """See `Effect.beside`: all of its neurons."""
        kinds = kinds_of(self.place, self.subjects)
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}

    @property
    def is_plain(self) -> Tensor:
        """[size] bool: True for neurons that a wider FFN of the model could have itself."""
        return torch.tensor([kind == NEURONS for kind in kinds_of(self.place, self.subjects)])

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """See `Effect.silenced`."""
        size = self.size
        try:
            self.truncate(0)
            yield
        finally:
            self.truncate(size)
