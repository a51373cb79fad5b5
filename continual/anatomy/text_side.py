"""Lets a model that demands pictures run on tokens alone: by the language model inside it.

BLIP-2's class has no forward for a text without a picture, and none for a picture whose states are
there already. Its language model has both. Here such a model passes a call without pictures on to
that one; a call with pictures is its own, as it was. Found by structure: a forward that requires
`pixel_values`, around a decoder with the model's own embeddings and head. Leaves the states of
pictures to `tasks`.
"""

from __future__ import annotations

import inspect
from typing import Any

from continual.anatomy.module_paths import name_of, path_of
from continual.errors import ModelError

PIXELS = "pixel_values"


def demands_pictures(model: Any) -> bool:
    """Tell whether the model's forward cannot be called without a picture."""
    parameter = inspect.signature(type(model).forward).parameters.get(PIXELS)
    return parameter is not None and parameter.default is inspect.Parameter.empty


def run_on_tokens(model: Any) -> None:
    """Let a model that demands pictures run and generate on tokens alone, in place; leave any other
    as it is. Raises ModelError for one without a decoder inside."""
    if not demands_pictures(model):
        return
    inner = _language_model(model)
    if model.generation_config.eos_token_id is None:
        model.generation_config = inner.generation_config
    whole_class = type(model)
    model.__class__ = type(
        whole_class.__name__,
        (_OnTokens, whole_class),
        {"__module__": whole_class.__module__, "inner_path": path_of(model, inner)},
    )


def _language_model(model: Any) -> Any:
    """Return the outermost module inside that has the model's own head and can generate."""
    head = model.get_output_embeddings()
    for module in model.modules():
        can_generate = getattr(module, "can_generate", None)
        if module is model or can_generate is None or not can_generate():
            continue
        if head is None or module.get_output_embeddings() is not head:
            continue
        if module.config.is_encoder_decoder:
            raise ModelError(
                f"{name_of(model)} has an encoder-decoder behind its pictures "
                f"({name_of(module)}): with pictures decoders can be corrected, such as BLIP-2 "
                "over OPT. Save its language model alone for the task seq2seq."
            )
        return module
    raise ModelError(
        f"{name_of(model)} cannot be run without a picture, and has no language model inside that "
        "could be: models of this kind cannot be corrected."
    )


class _OnTokens:
    """A model whose calls without pictures go to the language model inside."""

    inner_path: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's own forward on pictures, the language model's on tokens alone."""
        if args or kwargs.get(PIXELS) is not None or "mm_encoder_outputs" in kwargs:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        return self._inner(**_without_pixels(kwargs))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate from pictures as the model does, from tokens alone as the language model."""
        if kwargs.get(PIXELS) is not None:
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        inner, whole = self._inner, self.generation_config  # type: ignore[attr-defined]
        own, inner.generation_config = inner.generation_config, whole
        try:
            return inner.generate(*args, **_without_pixels(kwargs))
        finally:
            inner.generation_config = own

    @property
    def _inner(self) -> Any:
        return self.get_submodule(self.inner_path)  # type: ignore[attr-defined]


def _without_pixels(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != PIXELS}
