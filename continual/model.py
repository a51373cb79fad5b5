"""The edited model: a base, and the patches of one revision, put on in order.

`EditedModel` behaves as the transformers model that it wraps: within its `with` block `generate`
and pipelines run with the patches. Taking patches off rebuilds the tensors that they touched, so
that going back gives the same bytes as never having gone forward. Records beside the weights are
put on and taken off alike; `generate` then answers an input that is about a record by the record.
Knows nothing of requests or of the store.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, cast

import torch
from torch import Tensor

from continual import hooks
from continual.anatomy import is_turned, reads_ahead
from continual.base import PretrainedBase
from continual.effects import NOTHING, Effect, GatedEffect, Reach
from continual.effects.gated import Mount, NeuronBank
from continual.effects.parameters import EditedWeight
from continual.effects.places import FFN, HIDDEN, POOLED, GatePlace
from continual.effects.pooling import PassTokens, means
from continual.effects.records import MemoryBank
from continual.errors import ModelError
from continual.patches import Patch
from continual.reading import RunningText, decoder

PASSED_MAX = 8  # latest states that `has_passed` looks at
AnyEffect = TypeVar("AnyEffect", bound=Effect)
AnyGated = TypeVar("AnyGated", bound=GatedEffect)


class Recalling(Protocol):
    """The part that finds a model's records and answers by them; see `memory.recall`."""

    def generate(self, *args: Any, **options: Any) -> Any:
        """Generate for `EditedModel.generate` if the model has records."""


@dataclass(frozen=True)
class _PatchMark:
    """The state after one patch: enough to come back to it by cutting off later pieces."""

    sizes: Mapping[str, int]  # of each effect, by its name
    fingerprint: str
    rows_state: str  # the fingerprint at which rows at the last place last moved


@dataclass(frozen=True)
class Since:
    """The effects that came to a model since a state that it passed."""

    reach: Reach
    gated: Sequence[GatedEffect]  # effects with gates that have more pieces than then
    _sizes: Mapping[int, int]  # of every effect with gates at that state, by its identity

    def first(self, effect: GatedEffect) -> int:
        """Return the number of pieces that an effect had then: the pieces from there on are new."""
        return self._sizes.get(id(effect), 0)


class EditedModel:
    """A base model with patches on it. A context manager: outside of it the base is bare.

    `fingerprint` names the state: a chain of SHA-256 over the base's fingerprint and, patch by
    patch, its kind and place and the tensors that it touched as they stand in the model.
    """

    def __init__(self, base: PretrainedBase) -> None:
        self.base = base
        self.model = base.model
        self.tokenizer = base.tokenizer
        self.anatomy = base.anatomy
        self.memory = MemoryBank()
        self._effects: dict[str, Effect] = {"records": self.memory}
        self.recall: Recalling | None = None  # None: its records cannot be found
        self.decode = decoder(base.tokenizer)
        self._running = RunningText(self.decode)
        self._tokens = PassTokens()
        self._gated: dict[str, GatedEffect] = {}  # the effects with gates
        self._marks = [_PatchMark({}, base.fingerprint, base.fingerprint)]
        self._hooks: ExitStack | None = None
        self._gate_hooks = ExitStack()
        self._is_bare = False
        self._entered = 0  # open `with` blocks
        self._has_told = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's own forward, which knows of no memory."""
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers' `generate`; if the model has records, the reader of a record
        answers the inputs of the batch that are about it.

        Raises ModelError for options that a routed answer does not support.
        """
        kwargs |= self._uncached
        if self._is_bare or not len(self.memory):
            return type(self.model).generate(self.model, *args, **kwargs)
        return self.require_recall().generate(*args, **kwargs)

    @property
    def decoding(self) -> Mapping[str, Any]:
        """The options with which transformers' `generate` runs the model as it stands."""
        return {**self.base.decoding, **self._uncached}

    @property
    def _uncached(self) -> dict[str, Any]:
        """The option of `generate` that shows whole texts to a pooled gate; empty without one."""
        is_pooled = any(effect.place.key == POOLED for effect in self.open_gates)
        return {"use_cache": False} if is_pooled else {}

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save as transformers' `save_pretrained`, if all edits stand in the parameters.

        Raises ModelError if some stand beside them: the folder would have the model without these
        edits.
        """
        if not all(effect.is_in_parameters for effect in self._effects.values()):
            raise ModelError(
                "This model has edits that stand beside its weights (neurons, records), and "
                "save_pretrained writes weights alone: the folder would have a model without them. "
                "`cedit export FILE` writes the whole history, `cedit import FILE STORE` makes a "
                "store of it anywhere, and continual.open(STORE) gives the model with its edits."
            )
        return type(self.model).save_pretrained(self.model, *args, **kwargs)

    def require_recall(self) -> Recalling:
        """Return the part that finds the model's records. Raises ModelError if there is none."""
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
        for method in (self.generate, self.save_pretrained):
            name = method.__name__
            self._hooks.enter_context(hooks.standing_in(self.model, name, method))
        self._hooks.enter_context(hooks.uncompiled(self.model, self._begin_forward))
        if self.model.base_model is not self.model:
            self._hooks.enter_context(hooks.uncompiled(self.model.base_model, _refuse_graphs))
        if hasattr(self.model, "prepare_inputs_for_generation"):
            self._hooks.enter_context(self._running.followed(self.model))
        self._hooks.enter_context(self._tokens.followed(self.model))
        for name, effect in self._effects.items():
            if name not in self._gated:
                self._hooks.enter_context(effect.attached())
        self._hooks.callback(self._detach_gates)
        self._attach_gates()
        return self

    def _begin_forward(self) -> None:
        """Refuse a graph. Warn, once, a program whose own call of the forward passes the model's
        records by."""
        _refuse_graphs()
        if self._has_told or self._is_bare or not len(self.memory):
            return
        level = _level_of_program()
        if level is None:
            return
        self._has_told = True
        warnings.warn(
            "The forward of this model knows nothing of the edits that it remembers as texts "
            f"(serac, ike: {len(self.memory)} of them), and its logits are without them. generate, "
            "pipelines and Session.ask answer with them.",
            stacklevel=level,
        )

    def _attach_gates(self) -> None:
        """Hook the gates in the order of their places, whatever order they came in: values on one
        output are then added in the same order in every session."""
        for effect in sorted(self._gated.values(), key=lambda effect: effect.place):
            self._gate_hooks.enter_context(effect.attached())

    def _detach_gates(self) -> None:
        self._gate_hooks.close()

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
        """The device of the inputs."""
        device = self.model.get_input_embeddings().weight.device
        assert isinstance(device, torch.device)
        return device

    @property
    def fingerprint(self) -> str:
        """The name of the state that the model is in."""
        return self._marks[-1].fingerprint

    @property
    def rows_state(self) -> str:
        """The name of the state of rows at the last FFN; neurons put on there later do not change
        it.

        Queries, residual sums and everything read from them hold as long as this name does.
        """
        return self.base.fingerprint if self._is_bare else self._marks[-1].rows_state

    @property
    def reach(self) -> Reach:
        """The reach of all patches on the model. It names the first block for parameters in front
        of the blocks, the last for those behind them."""
        return self._reach_since(self._marks[0])

    def _reach_since(self, mark: _PatchMark) -> Reach:
        sizes = mark.sizes
        found = (effect.reach(sizes.get(n, 0)) for n, effect in self._effects.items())
        return reduce(or_, found, NOTHING)

    @cached_property
    def site_place(self) -> GatePlace:
        """The last place of the model, from which logits are computed: its last FFN, or the output
        of its last block where that FFN has no site."""
        return GatePlace.at(self.anatomy.last, FFN if self.anatomy.is_at_ffn else HIDDEN)

    def has_passed(self, state: str, neurons: int) -> bool:
        """Tell whether a state with so many neurons at the last place was one of the last on the
        way to this one: those neurons are then the first of the present ones."""
        name = _neurons_at(self.site_place)
        return self.site_bank.size >= neurons and any(
            mark.fingerprint == state and mark.sizes.get(name, 0) == neurons
            for mark in self._marks[-PASSED_MAX:]
        )

    def since(self, state: str) -> Since | None:
        """Return the effects that came since an earlier state, named by its fingerprint; None for a
        state that the model did not pass."""
        mark = next((m for m in reversed(self._marks) if m.fingerprint == state), None)
        if mark is None:
            return None
        sizes = {id(effect): mark.sizes.get(name, 0) for name, effect in self._gated.items()}
        came = [effect for effect in self._gated.values() if effect.size > sizes[id(effect)]]
        return Since(self._reach_since(mark), came, sizes)

    @property
    def depth(self) -> int:
        """The number of steps whose patches are on."""
        return len(self._marks) - 1

    def put(self, parts: Sequence[Patch]) -> None:
        """Put one step's patch on. If it does not fit, the model is as before."""
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

    def put_many(self, parts: Sequence[Patch], fingerprint: str, rows_state: str) -> None:
        """Put on the joined patches of many steps as one; `fingerprint` and `rows_state` are the
        names of the state that the steps lead to one by one."""
        for part in parts:
            part.put_on(self)
        self._mark(fingerprint, rows_state)

    def _mark(self, fingerprint: str, rows_state: str | None = None) -> None:
        """Mark the present state, as a way back to it."""
        before = self._marks[-1]
        moved = self._reach_since(before).moves(self.site_place)
        state = rows_state or (fingerprint if moved else before.rows_state)
        sizes = {name: effect.size for name, effect in self._effects.items()}
        self._marks.append(_PatchMark(sizes, fingerprint, state))

    def take_off(self, depth: int) -> None:
        """Go back to the state with the first `depth` steps' patches.

        Raises ModelError if `settle` let go of dense patches among them.
        """
        if not 0 <= depth <= self.depth:
            raise ValueError(f"{depth} patches cannot be kept of {self.depth}")
        sizes = self._marks[depth].sizes
        for name, effect in self._effects.items():
            effect.require_way_back(sizes.get(name, 0))
        del self._marks[depth + 1 :]
        for name, effect in self._effects.items():
            effect.truncate(sizes.get(name, 0))

    def settle(self) -> None:
        """Let go of the dense differences of the present patches.

        A way back to a state between base and here may then be refused; see `take_off`.
        """
        for effect in self._effects.values():
            effect.settle()

    # -- gates

    def bank(self, block: int) -> NeuronBank:
        """Return the neurons at the FFN of a block."""
        return self.gates(GatePlace.at(block))

    @property
    def site_bank(self) -> NeuronBank:
        """The neurons at the last place of the model."""
        return self.gates(self.site_place)

    def gates(self, place: GatePlace) -> NeuronBank:
        """Return the neurons at a place, made and attached at the first call."""
        return self.gated(_neurons_at(place), place, NeuronBank)

    def gated(self, name: str, place: GatePlace, make: Callable[[Mount], AnyGated]) -> AnyGated:
        """Return the effect of this name, with its gates at a place, made and attached at the first
        call. One name has one kind of effect. Raises ModelError for blocks that the model does not
        have, and for effects other than neurons at the last place of the model: the values
        added there are computed from rows."""
        known = self._gated.get(name)
        if known is not None:
            return cast(AnyGated, known)
        if place == self.site_place and name != _neurons_at(place):
            raise ModelError(
                f"The effect {name!r} has its gates from {place}: that place is for neurons. Let "
                "its values land on the block's output."
            )
        effect = make(self.mount(place))
        self._effects[name] = self._gated[name] = effect
        if self._hooks is not None:
            self._detach_gates()
            self._attach_gates()
        return effect

    def mount(self, place: GatePlace) -> Mount:
        """Return the modules that gates at a place hook, as a `Mount`. Raises ModelError for blocks
        that the model does not have."""
        self._require_block(place.block)
        self._require_block(place.value_block)
        anatomy, model = self.anatomy, self.model
        block = anatomy.block(model, place.block)
        reader = anatomy.query_module(model, place.block) if place.key == FFN else block
        landing = anatomy.block(model, place.value_block)
        if place.value == FFN:
            landing = anatomy.down_module(model, place.value_block)
        return Mount(
            place,
            anatomy.width,
            next(landing.parameters()).device,
            (reader, landing),
            self._pool() if place.key == POOLED else None,
            self._running.texts,
            is_site=place == self.site_place,
        )

    def _pool(self) -> Callable[[Tensor], Tensor]:
        """Return the function from a block's outputs [B, T, d] to their pooled states in the pass
        under way. Runs the model, to see whether it is an encoder."""
        is_whole = self._reads_ahead
        if self.model.can_generate() and not self.model.config.is_encoder_decoder:
            with self.bare():
                dict(self.base.decoding)  # found once, with a cache, which a gate would refuse
        return lambda states: means(states, self._tokens.real(states), is_whole=is_whole)

    @cached_property
    def _reads_ahead(self) -> bool:
        with self.bare():
            return reads_ahead(self.model, self.anatomy)

    @property
    def open_gates(self) -> Sequence[GatedEffect]:
        """The effects with gates that have any pieces."""
        return [effect for effect in self._gated.values() if effect.size]

    @property
    def moves_rows(self) -> bool:
        """True if gates on the model may change rows at its last place."""
        return any(e.place.moves_rows(self.site_place) for e in self.open_gates)

    @property
    def is_read_off_rows(self) -> bool:
        """True if rows at the last place determine the answer: no values land behind it, and the
        model's own logits are computed row by row."""
        return not self.anatomy.no_rows and not any(
            e.place.is_behind(self.site_place) for e in self.open_gates
        )

    # -- parameters

    def _add(self, name: str, effect: AnyEffect) -> AnyEffect:
        """Take in an effect without pieces."""
        self._effects[name] = effect
        if self._hooks is not None:
            self._hooks.enter_context(effect.attached())
        return effect

    def weight(self, block: int) -> EditedWeight:
        """Return the FFN's output matrix of a block as [d_ff, d], with the additions to it."""
        self._require_block(block)
        return self.parameter(self.anatomy.down_path(block))

    def parameter(self, path: str) -> EditedWeight:
        """Return the parameter at a path, with the additions to it: one object for all of its
        names.

        Raises ModelError if there is none.
        """
        name = self._names(path)[0]
        known = self._effects.get(_sum_of(name))
        if isinstance(known, EditedWeight):
            return known
        return self._add(_sum_of(name), self._seen(name))

    def matrix(self, path: str) -> EditedWeight:
        """Return the matrix at a path as [inputs, outputs], with the additions to it: the weight of
        one linear or embedding layer.

        Raises ModelError if there is none, or if a product of factors cannot edit it: it is tied to
        another, does not have two dimensions, or is of a layer not known to multiply by it.
        """
        names = self._names(path)
        if len(names) > 1:
            others = ", ".join(name for name in names if name != path)
            raise ModelError(
                f"The matrix {path} is tied: {others} is the same parameter, and an update by "
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

    def block_of(self, path: str) -> int:
        """Return the first block whose output depends on the parameter at a path."""
        return self.anatomy.lowest_block(self._names(path))

    def _seen(self, name: str) -> EditedWeight:
        turned = bool(is_turned(self.model, name))
        weight = self.model.get_parameter(name)
        return EditedWeight(weight.T if turned else weight, self.block_of(name), is_turned=turned)

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
        differentiate within `with`; afterwards they are as before."""
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

    @contextmanager
    def before_last_neurons(self) -> Iterator[None]:
        """Run the model within `with` without the neurons of its last place and without values that
        land behind it: rows there depend on neither."""
        with self.site_bank.silenced(), self.up_to_last_sum():
            yield

    @contextmanager
    def up_to_last_sum(self) -> Iterator[None]:
        """Run the model within `with` without values that land behind the last residual sum."""
        with ExitStack() as stack:
            for effect in self.open_gates:
                if effect.place.is_behind(self.site_place):
                    stack.enter_context(effect.silenced())
            yield

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Run the base model within `with`, without memory too."""
        was_bare, self._is_bare = self._is_bare, True
        try:
            with ExitStack() as stack:
                for effect in self._effects.values():
                    stack.enter_context(effect.silenced())
                yield
        finally:
            self._is_bare = was_bare


def _refuse_graphs() -> None:
    """Raise ModelError if the pass under way is recorded as a graph."""
    if hooks.is_recorded():
        raise ModelError(
            "A traced or exported graph of this model would be without its edits, which are hooks "
            "on it. Call the model itself; or edit with methods that write to the weights (memit, "
            "fine-tuning), save it with save_pretrained, and trace what from_pretrained loads."
        )


def _level_of_program() -> int | None:
    """Return the level, for `warnings.warn` in the caller, of the program that called the model's
    forward; None if this package did, or transformers' `generate`, which route inputs
    themselves."""
    frame, level = sys._getframe(1).f_back, 2
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if not module.startswith("torch.") and module != hooks.__name__:
            inside = ("continual.", "transformers.generation.")
            return None if module.startswith(inside) else level
        frame, level = frame.f_back, level + 1
    return None


def _neurons_at(place: GatePlace) -> str:
    """Return the name of the effect of a place's neurons."""
    return f"neurons at {place.block}" if place.is_local else f"neurons from {place}"


def _sum_of(path: str) -> str:
    """Return the name of the effect of additions to a parameter."""
    return f"sum of {path}"


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's own bytes, row by row."""
    contiguous = tensor.detach().cpu().contiguous()
    return contiguous.flatten().view(torch.uint8).numpy().tobytes() if contiguous.numel() else b""


def stand_at(edited: EditedModel, steps: Iterable[Sequence[Patch]]) -> None:
    """Take all patches off and put these steps' patches on."""
    edited.take_off(0)
    for parts in steps:
        edited.put(parts)
        edited.settle()
