"""The states of an edited model: patches go on in their order, and off again without a trace.

A state is named by a fingerprint, and marked, so that the model comes back to it by cutting off
later pieces. Knows nothing of revisions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from pathlib import Path

import torch
from torch import Tensor

from continual import hooks
from continual.base import PretrainedBase
from continual.effects import NOTHING, GatedEffect, Reach
from continual.model.gates import ModelGates, neurons_at
from continual.model.parameters import ModelParameters
from continual.patches import Patch
from continual.storage import inner_tensors

PASSED_MAX = 8  # latest states that `has_passed` looks at


@dataclass(frozen=True)
class _PatchMark:
    """The state after one patch: enough to come back to it by cutting off later pieces."""

    sizes: Mapping[str, int]  # of each effect, by its name
    fingerprint: str
    rows_state: str  # the fingerprint at which rows at the last place last moved
    parts: tuple[Patch, ...] | None  # of the patch; None once the model has settled


@dataclass(frozen=True)
class JournalPlace:
    """A state of the model that a store's journal has, and its place among the model's patches."""

    store: Path
    revision: str
    depth: int
    fingerprint: str


@dataclass(frozen=True)
class StateRecipe:
    """The way of another process to the state of a model: a state of the journal, or the bare base,
    and the patches that were put on behind it."""

    place: JournalPlace | None  # None: the bare base
    steps: tuple[tuple[Patch, ...], ...]
    fingerprint: str  # of the state behind all of them
    is_bare: bool  # all patches are silent for now: any state does


@dataclass(frozen=True)
class Since:
    """The effects that came to a model since a state that it passed."""

    reach: Reach
    gated: Sequence[GatedEffect]  # effects with gates that have more pieces than then
    _sizes: Mapping[int, int]  # of every effect with gates at that state, by its identity

    def first(self, effect: GatedEffect) -> int:
        """Return the number of pieces that an effect had then: the pieces from there on are new."""
        return self._sizes.get(id(effect), 0)


class ModelStates(ModelParameters, ModelGates):
    """The part of an edited model that puts patches on and takes them off."""

    def __init__(self, base: PretrainedBase) -> None:
        super().__init__(base)
        self._marks = [_PatchMark({}, base.fingerprint, base.fingerprint, ())]
        self._place: JournalPlace | None = None

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
        reaches = (effect.reach(sizes.get(n, 0)) for n, effect in self._effects.items())
        return reduce(or_, reaches, NOTHING)

    def has_passed(self, state: str, neurons: int) -> bool:
        """Tell whether a state with so many neurons at the last place was one of the last on the
        way to this one: those neurons are then the first of the present ones."""
        name = neurons_at(self.site_place)
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
        self._mark(chain.hexdigest() if parts else self.fingerprint, parts=tuple(parts))

    def put_many(self, parts: Sequence[Patch], fingerprint: str, rows_state: str) -> None:
        """Put on the joined patches of many steps as one; `fingerprint` and `rows_state` are the
        names of the state that the steps lead to one by one."""
        for part in parts:
            part.put_on(self)
        self._mark(fingerprint, rows_state)

    def _mark(
        self,
        fingerprint: str,
        rows_state: str | None = None,
        parts: tuple[Patch, ...] | None = None,
    ) -> None:
        """Mark the present state, as a way back to it."""
        before = self._marks[-1]
        moved = self._reach_since(before).moves(self.site_place)
        state = rows_state or (fingerprint if moved else before.rows_state)
        sizes = {name: effect.size for name, effect in self._effects.items()}
        self._marks.append(_PatchMark(sizes, fingerprint, state, parts))

    def settle(self) -> None:
        """Let go of the dense differences of the present patches, and of the patches themselves."""
        super().settle()
        for number in range(self.depth, 0, -1):
            if self._marks[number].parts is None:
                break
            self._marks[number] = replace(self._marks[number], parts=None)

    def stands_in(self, store: Path, revision: str) -> None:
        """Note that the state is a revision of a store's journal: another process comes to it, and
        to the states behind it, from there."""
        self._place = JournalPlace(store.absolute(), revision, self.depth, self.fingerprint)

    @property
    def recipe(self) -> StateRecipe | None:
        """The way of another process to the present state. None if there is none: something other
        than patches changes the model now, or a patch behind the journal's state is gone."""
        is_entered = self._hooks is not None
        if not is_entered or self._is_trained or hooks.count_on(self.model) != self._own_hooks:
            return None
        if self._is_bare:
            return StateRecipe(None, (), self.base.fingerprint, is_bare=True)
        sizes = self._marks[-1].sizes
        if any(effect.size != sizes.get(n, 0) for n, effect in self._gated.items()):
            return None  # some gates are silent
        place = self._place
        if place is not None and not self._has_mark(place):
            place = None
        steps = [mark.parts for mark in self._marks[1 if place is None else place.depth + 1 :]]
        known_steps = [parts for parts in steps if parts is not None]
        if len(known_steps) < len(steps):
            return None
        return StateRecipe(place, tuple(known_steps), self.fingerprint, is_bare=False)

    def _has_mark(self, place: JournalPlace) -> bool:
        """Tell whether the model has that state's patches on, or has them below later ones."""
        depth = place.depth
        return depth <= self.depth and self._marks[depth].fingerprint == place.fingerprint

    def depth_of(self, fingerprint: str) -> int | None:
        """Return the number of patches of the latest state with this name on the way to the present
        one; None for a state that the model did not pass."""
        numbers = range(self.depth, -1, -1)
        return next((n for n in numbers if self._marks[n].fingerprint == fingerprint), None)

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


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's own bytes, row by row; those of all inner tensors if it is packed."""
    parts = (inner.detach().cpu().contiguous() for inner in inner_tensors(tensor))
    return b"".join(p.flatten().view(torch.uint8).numpy().tobytes() for p in parts if p.numel())
