"""The edited model as the transformers model that it wraps.

Within its `with` block `generate`, `save_pretrained` and pipelines run with the patches; with
records, `generate` answers an input that is about one by the record. Leaves finding a record to
`memory.recall`.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol, Self

from continual import hooks
from continual.base import PretrainedBase
from continual.effects import BESIDE, MEMORY
from continual.effects.places import POOLED
from continual.errors import ModelError
from continual.loading import assembled
from continual.model.states import ModelStates
from continual.patches import Patch
from continual.storage import is_plain


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
        self.plain: Callable[[str], Any] | None = None
        """Makes a plain transformers model with the edits, for a caller; see `saving.merged`."""
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
        """Save as transformers' `save_pretrained`, with the edits. Edits beside the parameters are
        saved as a wider FFN, in a config of its own.

        Raises ModelError if some cannot be: the folder would have the model without these edits.
        """
        model = self.as_plain("save_pretrained")
        return type(model).save_pretrained(model, *args, **kwargs)

    def as_plain(self, caller: str) -> Any:
        """Return a transformers model that has the edits in its parameters: this one, or one with a
        wider FFN. Raises ModelError, which names the `caller`, if that cannot be."""
        if not self.beside:
            return self.model
        if self.plain is not None:
            return self.plain(caller)
        raise ModelError(cannot_go_along(self.beside, caller))

    def _reduced(self, protocol: Any) -> Any:
        """Pickle the model with its edits in its parameters, for `pickle` and `torch.save`. Raises
        ModelError if that cannot be."""
        model = self.as_plain("a pickle (torch.save)")
        plain = self._rebuilt() if model is self.model else model
        return plain.__reduce_ex__(protocol)

    def _copied(self, memo: dict[int, Any]) -> Any:
        """Copy the model for `copy.deepcopy`: a plain one if all edits stand in the parameters,
        else one with the hooks of this model, which cannot be saved.

        Raises ModelError if there are records, which the copy's `generate` would answer without.
        """
        if len(self.memory):
            raise ModelError(cannot_go_along({MEMORY: len(self.memory)}, "a copy (copy.deepcopy)"))
        if not self.beside and is_plain(self.model):
            memo[id(self.model)] = copied = self._rebuilt()
            return copied
        with hooks.standing_aside(self.model, *_COPYING):
            copied = copy.deepcopy(self.model, memo)
        for name in ("save_pretrained", "__reduce_ex__"):
            setattr(copied, name, _refuse_copy)
        return copied

    def _rebuilt(self) -> Any:
        """Return a plain model of this one's class, with parameters of its own. Raises ModelError
        if this one's are packed, or away on a disk."""
        if not is_plain(self.model):
            raise ModelError(
                "A model whose parameters are packed or away on a disk is not copied or pickled: "
                "open the store again instead, or `cedit save` it."
            )
        config, dtype = copy.deepcopy(self.model.config), next(self.model.parameters()).dtype
        state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        plain = assembled(type(self.model), config, state, dtype).to(self.device)
        if plain.can_generate():
            plain.generation_config = copy.deepcopy(self.model.generation_config)
        return plain

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
        with self._hooking():
            self._hook(self._hooks)
        return self

    def _hook(self, stack: ExitStack) -> None:
        """Hook everything that the model runs with, until the stack closes."""
        methods = {"generate": self.generate, "save_pretrained": self.save_pretrained}
        copying = dict(zip(_COPYING, (self._copied, self._reduced), strict=True))
        for name, method in {**methods, **copying}.items():
            stack.enter_context(hooks.standing_in(self.model, name, method))
        stack.enter_context(hooks.uncompiled(self.model, self._begin_forward))
        if self.model.base_model is not self.model:
            stack.enter_context(hooks.uncompiled(self.model.base_model, _refuse_graphs))
        if hasattr(self.model, "prepare_inputs_for_generation"):
            stack.enter_context(self._running.followed(self.model))
        stack.enter_context(self._tokens.followed(self.model))
        for name, effect in self._effects.items():
            if name not in self._gated:
                stack.enter_context(effect.attached())
        stack.callback(self._detach_gates)
        self._attach_gates()

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
        stack, self._hooks = self._hooks, None
        if stack is not None:
            with self._hooking():
                stack.close()


_COPYING = ("__deepcopy__", "__reduce_ex__")


def cannot_go_along(beside: Mapping[str, int], caller: str) -> str:
    """Return the message for edits that stand beside the parameters and cannot go along; `caller`
    names the attempt."""
    parts = ", ".join(f"{count} {BESIDE[kind]}" for kind, count in beside.items())
    return (
        f"This model has edits that stand beside its weights ({parts}), and {caller} would be "
        "without them. `cedit save DIR --as transformers` says which edits can go along, and "
        "--without leaves the others behind; `cedit export FILE` writes the whole history, `cedit "
        "import FILE STORE` makes a store of it anywhere, and continual.open(STORE) gives the "
        "model with all of its edits."
    )


def _refuse_copy(*_: Any, **__: Any) -> Any:
    """Raise ModelError: a copy has its edits in hooks that the session owns."""
    raise ModelError(
        "This is a copy of an edited model, and its edits are hooks that a saved model would not "
        "have. Save the session's own model, or use `cedit save DIR --as transformers`."
    )


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
