"""Mistral and Qwen2 written as Llama, which can have biases in its FFN.

Both are Llama, but for names and biases: without a sliding window the logits are the same to the
bit. Knows configs and the names of tensors.
"""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor

from continual.errors import ModelError

_OF_THE_TYPE = ("model_type", "architectures", "transformers_version", "_name_or_path", "dtype")


def as_llama(config: Any, model_class: Any, state: dict[str, Tensor]) -> tuple[Any, Any]:
    """Return the config and the class of the same model as Llama; `state` gets the biases that
    Llama's attention has beside the model's own, zero.

    Raises ModelError for a class that Llama has no equal of.
    """
    name = model_class.__name__
    own_prefix = type(config).__name__.removesuffix("Config")
    llama_class = getattr(transformers, f"Llama{name.removeprefix(own_prefix)}", None)
    if llama_class is None or not name.startswith(own_prefix):
        raise ModelError(f"{name} has no equal among Llama's classes, so that it stays as it is.")
    fields = transformers.LlamaConfig().to_dict().keys() - set(_OF_THE_TYPE)
    values = {key: value for key, value in config.to_dict().items() if key in fields}
    llama = transformers.LlamaConfig(**values, attention_bias=_add_output_biases(state))
    llama.dtype = config.dtype
    llama._attn_implementation = config._attn_implementation
    return llama, llama_class


def _add_output_biases(state: dict[str, Tensor]) -> bool:
    """Give the attention's output matrices a bias of zero if its other matrices have biases; tell
    whether they do."""
    suffix = ".self_attn.q_proj.bias"
    attentions = [name.removesuffix("q_proj.bias") for name in state if name.endswith(suffix)]
    for path in attentions:
        weight = state[f"{path}o_proj.weight"]
        state.setdefault(f"{path}o_proj.bias", weight.new_zeros(len(weight)))
    return bool(attentions)
