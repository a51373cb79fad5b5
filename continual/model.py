"""The edited model: a base, and the patches of one revision, put on in order.

`EditedModel` behaves as the transformers model that it wraps: within its `with` block `generate`
and pipelines run with the patches. Taking patches off rebuilds what they touched, so that going
back gives the same bytes as never having gone forward. What a model remembers beside its weights is
put on and taken off alike; `generate` then answers every input by the record that it is about, if
there is one. Knows nothing of requests or of the store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from continual import hooks
from continual.base import BaseModel
from continual.errors import ModelError
from continual.patches import Patch
from continual.patches.edited_weight import EditedWeight
from continual.patches.memory import MemoryBank
from continual.patches.neuron import NeuronBank
from continual.reading import RunningText, decoder

PASSED_MAX = 8  # states that are looked at


class Recalling(Protocol):
    """How a model finds its records and answers by them; see `memory.recall`."""

    def generate(self, *args: Any, **options: Any) -> Any:
        """What `EditedModel.generate` returns where the model remembers anything."""


@dataclass(frozen=True)
class _Mark:
    """The state after one patch: enough to come back to it by cutting off what came later."""

    sizes: Mapping[int, int]  # neurons by block
    weights: Mapping[str, int]  # patches by the path of the parameter that they edit
    memory: int  # patches of the memory
    fingerprint: str
    weights_state: str  # the fingerprint at which a parameter was last edited


class EditedModel:
    """A base model with patches on it. A context manager: outside of it the base is bare.

    `fingerprint` names the state: a chain of SHA-256 over the base's fingerprint and, patch by
    patch, its kind and place and the tensors that it touched as they stand in the model.
    """

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self.model = base.model
        self.tokenizer = base.tokenizer
        self.anatomy = base.anatomy
        self._banks: dict[int, NeuronBank] = {}
        self._weights: dict[str, EditedWeight] = {}
        self.memory = MemoryBank()
        self.recall: Recalling | None = None  # None: its records cannot be found
        self.decode = decoder(base.tokenizer)
        self._running = RunningText(self.decode)
        self._marks = [_Mark({}, {}, 0, base.fingerprint, base.fingerprint)]
        self._hooks: ExitStack | None = None
        self._is_bare = False
        self._entered = 0  # the `with` blocks that are open

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward, which knows of no memory."""
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """What transformers' `generate` returns; where the model remembers anything, each input of
        the batch that a record is about goes on as the record's reader answers it.

        Raises ModelError for what a routed answer cannot give.
        """
        if self._is_bare or not len(self.memory):
            return type(self.model).generate(self.model, *args, **kwargs)
        return self.require_recall().generate(*args, **kwargs)

    def require_recall(self) -> Recalling:
        """How the model finds its records. Raises ModelError where it cannot."""
        if self.recall is None:
            raise ModelError(
                "The model remembers edits and has nothing to find them by: open it with its store."
            )
        return self.recall

    def __enter__(self) -> Self:
        self._entered += 1
        if self._hooks is not None:
            return self
        self._hooks = ExitStack()
        self._hooks.enter_context(hooks.standing_in(self.model, "generate", self.generate))
        if hasattr(self.model, "prepare_inputs_for_generation"):
            self._hooks.enter_context(self._running.followed(self.model))
        for block, bank in self._banks.items():
            self._attach(block, bank)
        for weight in self._weights.values():
            self._show(weight)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered -= 1
        if self._entered:
            return
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.close()

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        device = self.model.get_input_embeddings().weight.device
        assert isinstance(device, torch.device)
        return device

    @property
    def fingerprint(self) -> str:
        """The name of the state that the model is in."""
        return self._marks[-1].fingerprint

    @property
    def weights_state(self) -> str:
        """The name of the state that the parameters are in: neurons put on later leave it as it is.

        Queries, residual sums and what is read from these hold as long as it does.
        """
        return self.base.fingerprint if self._is_bare else self._marks[-1].weights_state

    @property
    def edited_blocks(self) -> list[int]:
        """The blocks whose parameters are edited, as the model stands; what lies in front of the
        blocks or behind them counts as the first or the last."""
        return sorted({self.block_of(path) for path in self._marks[-1].weights})

    def has_passed(self, state: str, block: int, neurons: int) -> bool:
        """Whether a state with so many neurons at a block was one of the last on the way to this
        one: those neurons are then the first that are on."""
        return self._banks[block].size >= neurons and any(
            mark.fingerprint == state and mark.sizes.get(block, 0) == neurons
            for mark in self._marks[-PASSED_MAX:]
        )

    @property
    def depth(self) -> int:
        """How many steps' patches are on."""
        return len(self._marks) - 1

    def put(self, parts: Sequence[Patch]) -> None:
        """Put one step's patch on. Where it does not fit, the model is as before."""
        chain = hashlib.sha256(self.fingerprint.encode())
        try:
            for part in parts:
                meta = {"kind": part.kind, **part.meta()}
                chain.update(json.dumps(meta, sort_keys=True).encode())
                for tensor in part.put_on(self):
                    chain.update(tensor_bytes(tensor))
        except BaseException:
            self.take_off(self.depth)
            raise
        self._mark(chain.hexdigest() if parts else self.fingerprint)

    def put_many(self, parts: Sequence[Patch], fingerprint: str, weights_state: str) -> None:
        """Put on what the patches of many steps come to, as one; the names are those of the state
        that they lead to, by steps."""
        for part in parts:
            part.put_on(self)
        self._mark(fingerprint, weights_state)

    def _mark(self, fingerprint: str, weights_state: str | None = None) -> None:
        """Keep the way back to here."""
        weights = {path: weight.size for path, weight in self._weights.items() if weight.size}
        is_same = weights == self._marks[-1].weights
        sizes = {block: bank.size for block, bank in self._banks.items()}
        state = weights_state or (self.weights_state if is_same else fingerprint)
        self._marks.append(_Mark(sizes, weights, self.memory.size, fingerprint, state))

    def take_off(self, depth: int) -> None:
        """Go back to the state in which the first `depth` steps' patches were on.

        Raises ModelError where dense ones among them were let go; see `settle`.
        """
        if not 0 <= depth <= self.depth:
            raise ValueError(f"{depth} patches cannot be kept of {self.depth}")
        mark = self._marks[depth]
        sizes = {path: mark.weights.get(path, 0) for path in self._weights}
        for path, size in sizes.items():
            self._weights[path].require_way_back(size)
        del self._marks[depth + 1 :]
        for block, bank in self._banks.items():
            bank.truncate(mark.sizes.get(block, 0))
        for path, size in sizes.items():
            self._weights[path].truncate(size)
        self.memory.truncate(mark.memory)

    def settle(self) -> None:
        """What is on stays on until all of it is taken off: dense differences are let go.

        A way back to a state between base and here may then be refused; see `take_off`.
        """
        for weight in self._weights.values():
            weight.settle()

    def bank(self, block: int) -> NeuronBank:
        """The neurons at a block: made, and attached, when first asked for."""
        if block not in self._banks:
            self._require_block(block)
            bank = NeuronBank(
                self.anatomy.width, self.anatomy.down_weight(self.model, block).device
            )
            self._banks[block] = bank
            if self._hooks is not None:
                self._attach(block, bank)
        return self._banks[block]

    def weight(self, block: int) -> EditedWeight:
        """The FFN's output matrix of a block as [d_ff, d], with what was added to it."""
        self._require_block(block)
        return self.parameter(self.anatomy.down_path(block))

    def parameter(self, path: str) -> EditedWeight:
        """The parameter at a path, with what was added to it: one object for all of its names.

        Raises ModelError where there is none.
        """
        name = self._names(path)[0]
        if name not in self._weights:
            weight = self._seen(name)
            self._weights[name] = weight
            if self._hooks is not None:
                self._show(weight)
        return self._weights[name]

    def block_of(self, path: str) -> int:
        """The first block whose output depends on the parameter at a path."""
        return self.anatomy.lowest_block(self._names(path))

    def _seen(self, name: str) -> EditedWeight:
        downs = {self.anatomy.down_path(b): b for b in range(self.anatomy.block_count)}
        for other in self._names(name):
            if other in downs:
                view = self.anatomy.down_weight(self.model, downs[other])
                return EditedWeight(view, is_turned=not self.anatomy.transposed)
        return EditedWeight(self.model.get_parameter(name))

    def _names(self, path: str) -> Sequence[str]:
        """All names of the parameter at a path: tied ones have several."""
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
        """The model's own parameters at these paths, by their first names, to be changed and
        differentiated while this lasts; they are as before when it ends."""
        names = dict.fromkeys(self._names(path)[0] for path in paths)
        weights = [self.parameter(name) for name in names]
        parameters = {name: self.model.get_parameter(name) for name in names}
        try:
            for parameter in parameters.values():
                parameter.requires_grad_(True)
            yield parameters
        finally:
            for parameter in parameters.values():
                parameter.requires_grad_(False)
                parameter.grad = None
            for weight in weights:
                weight.restore()

    def _require_block(self, block: int) -> None:
        if not 0 <= block <= self.anatomy.last:
            raise ModelError(
                f"A patch is for block {block}; the model ends at block "
                f"{self.anatomy.last}: it was made on another model."
            )

    def _show(self, weight: EditedWeight) -> None:
        assert self._hooks is not None
        weight.show()
        self._hooks.callback(weight.hide)

    def _attach(self, block: int, bank: NeuronBank) -> None:
        assert self._hooks is not None
        query = self.anatomy.query_module(self.model, block)
        down = self.anatomy.down_module(self.model, block)
        self._hooks.enter_context(bank.attached(query, down, self._running.texts))

    @contextmanager
    def without_neurons(self) -> Iterator[None]:
        """The model with its neurons silenced, for as long as this lasts."""
        sizes = {block: bank.size for block, bank in self._banks.items()}
        try:
            for bank in self._banks.values():
                bank.truncate(0)
            yield
        finally:
            for block, size in sizes.items():
                self._banks[block].truncate(size)

    @contextmanager
    def bare(self) -> Iterator[None]:
        """The base model, without memory too, for as long as this lasts."""
        shown = list(self._weights.values()) if self._hooks is not None else []
        was_bare, self._is_bare = self._is_bare, True
        try:
            for weight in shown:
                weight.hide()
            with self.without_neurons():
                yield
        finally:
            self._is_bare = was_bare
            for weight in shown:
                weight.show()


def tensor_bytes(tensor: Tensor) -> bytes:
    """A tensor's own bytes, row by row."""
    contiguous = tensor.detach().cpu().contiguous()
    return contiguous.flatten().view(torch.uint8).numpy().tobytes() if contiguous.numel() else b""


def stand_at(edited: EditedModel, steps: Iterable[Sequence[Patch]]) -> None:
    """Take everything off and put these steps' patches on."""
    edited.take_off(0)
    for parts in steps:
        edited.put(parts)
        edited.settle()
