"""The edited model as the transformers model that it wraps.

Within its `with` block `generate`, `save_pretrained` and pipelines run with the patches; with
records, `generate` answers an input that is about one by the record. Leaves finding a record to
`memory.recall`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol, Self

from continual import hooks
from continual.base import PretrainedBase
from continual.effects.places import POOLED
from continual.errors import ModelError
from continual.model.states import ModelStates
from continual.patches import Patch


class Recalling(Protocol):
    """The part that finds a model's records and answers by them; see `memory.recall`."""

    def generate(self, *args: Any, **options: Any) -> Any:
        """Generate for `EditedModel.generate` if the model has records."""


class EditedModel(ModelStates):
    """A base model with patches on it. A context manager: outside of it the base is bare.

    `fingerprint` names the state: a chain of SHA-256 over the base's fingerprint and, patch by
    patch, its kind and place and the tensors that it touched as they stand in the model.
    """

    def __init__(self, base: PretrainedBase) -> None:
        super().__init__(base)
        self.recall: Recalling | None = None  # None: its records cannot be found
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


def stand_at(edited: EditedModel, steps: Iterable[Sequence[Patch]]) -> None:
    """Take all patches off and put these steps' patches on."""
    edited.take_off(0)
    for parts in steps:
        edited.put(parts)
        edited.settle()
