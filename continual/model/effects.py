"""The effects of patches on a base model, as every part of the edited model reads them.

Knows the effects by their names, hooks them while the model is entered, and silences them. Leaves
making an effect to ``parameters`` and ``gates``, and the order of patches to ``states``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TypeVar

import torch

from continual import hooks
from continual.base import PretrainedBase
from continual.effects import BESIDE, Effect
from continual.effects.places import CONTEXT, HIDDEN, TOPIC, GatePlace
from continual.effects.records import MemoryBank
from continual.errors import ModelError
from continual.storage import device_of, input_device

AnyEffect = TypeVar("AnyEffect", bound=Effect)


class ModelEffects:
    """A base model with the effects that stand on it, by their names."""

    def __init__(self, base: PretrainedBase) -> None:
        self.base = base
        self.model = base.model
        self.tokenizer = base.tokenizer
        self.anatomy = base.anatomy
        self.memory = MemoryBank()
        self._effects: dict[str, Effect] = {"records": self.memory}
        self._hooks: ExitStack | None = None
        self._own_hooks = hooks.count_on(self.model)  # its loader's, its effects' and its own
        self._is_bare = False

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""
        return input_device(self.model)

    @property
    def site_device(self) -> torch.device:
        """The device of rows at the last place: the last block's."""
        return device_of(self.anatomy.block(self.model, self.anatomy.last))

    @cached_property
    def site_place(self) -> GatePlace:
        """The last place of the model, from which logits are computed: its last FFN, or the output
        of its last block where that FFN has no site. The anatomy may give its queries a context."""
        anatomy = self.anatomy
        if not anatomy.is_at_ffn:
            return GatePlace.at(anatomy.last, HIDDEN)
        if anatomy.context_block is None:
            return GatePlace.at(anatomy.last)
        key = CONTEXT if anatomy.turn is None else TOPIC
        return GatePlace.at(anatomy.last, key, context=anatomy.context_block)

    @property
    def beside(self) -> dict[str, int]:
        """Return the number of pieces that stand beside the model's parameters, by their kind in
        `effects.BESIDE`, in its order."""
        counts = Counter[str]()
        for effect in self._effects.values():
            counts.update(effect.beside)
        return {kind: counts[kind] for kind in BESIDE if counts[kind]}

    def settle(self) -> None:
        """Let go of the dense differences of the present patches.

        A way back to a state between base and here may then be refused; see `take_off`.
        """
        for effect in self._effects.values():
            effect.settle()

    def _add(self, name: str, effect: AnyEffect) -> AnyEffect:
        """Take in an effect without pieces."""
        self._effects[name] = effect
        if self._hooks is not None:
            with self._hooking():
                self._hooks.enter_context(effect.attached())
        return effect

    @contextmanager
    def _hooking(self) -> Iterator[None]:
        """Count the hooks that come to the model, or go, within `with` among its own."""
        before = hooks.count_on(self.model)
        try:
            yield
        finally:
            self._own_hooks += hooks.count_on(self.model) - before

    def _require_block(self, block: int) -> None:
        if not 0 <= block <= self.anatomy.last:
            raise ModelError(
                f"A patch is for block {block}; the model ends at block "
                f"{self.anatomy.last}: it was made on another model."
            )

    @property
    def is_bare(self) -> bool:
        """True within `bare`."""
        return self._is_bare

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
