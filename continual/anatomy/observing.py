"""Observes a model's forward pass: the calls of its modules, in the order in which they run.

Makes the inputs of such a pass, and tells a model that cannot be run on the tokens of a text.
Leaves the meaning of the calls to ``blocks``, ``ffn`` and ``logit_path``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from continual import hooks
from continual.anatomy.module_paths import name_of
from continual.anatomy.structure import Anatomy
from continual.errors import ModelError
from continual.out_of_memory import is_out_of_memory
from continual.storage import input_device

MESSAGE_MAX = 200  # characters of another package's message in one of ours


def sample_inputs(model: Any, length: int) -> dict[str, Tensor]:
    """Make one sequence [1, length] of token ids from the middle of the vocabulary. For an encoder
    it ends as its texts do: a classifier behind a decoder reads its answer at the end token."""
    embedding = _embedding(model)
    vocabulary = len(embedding)
    spread = torch.linspace(vocabulary // 4, vocabulary // 2, length, device=input_device(model))
    inputs = {"input_ids": spread.long().unsqueeze(0)}
    if is_seq2seq(model):
        inputs["decoder_input_ids"] = inputs["input_ids"].clone()
        if isinstance(end := model.config.eos_token_id, int):
            inputs["input_ids"][0, -1] = end
    return inputs


@torch.no_grad()
def reads_ahead(model: Any, anatomy: Anatomy) -> bool:
    """Tell whether the blocks' state at a token depends on later ones, as in an encoder."""
    inputs = sample_inputs(model, 3)
    name = "decoder_input_ids" if is_seq2seq(model) else "input_ids"
    changed = {**inputs, name: inputs[name].clone()}
    changed[name][0, -1] = inputs[name][0, 0]
    state, changed_state = (_first_state(model, anatomy, sample) for sample in (inputs, changed))
    return not torch.allclose(state, changed_state)


def _first_state(model: Any, anatomy: Anatomy, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return [d] the last block's output at the first token."""
    with hooks.captured(anatomy.block(model, anatomy.last)) as calls:
        model(**inputs, use_cache=False, return_dict=True)
    return calls[0].hidden[0, 0]


def _embedding(model: Any) -> Tensor:
    """Return the table of token embeddings [vocab, .]. Raises ModelError if there is none."""
    try:
        weight = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        weight = None
    if not isinstance(weight, Tensor):
        raise ModelError(
            f"{name_of(model)} has no table of token embeddings: it reads something else than the "
            "tokens of a text, or hashes them. Models of this kind cannot be corrected."
        )
    return weight


def is_seq2seq(model: Any) -> bool:
    """Tell whether a decoder attends to an encoder of token ids."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


WANTS_OTHER_INPUTS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    ImportError,
)
"""The errors of a model that is called with other inputs than it takes, or in other shapes."""


ModuleCalls = list[tuple[str, hooks.Call]]
"""Paths of modules with their calls, in the order in which they returned."""


def observe(model: Any, inputs: Mapping[str, Tensor]) -> ModuleCalls:
    """Record every module's calls in one forward pass; the model itself, whose path is "", comes
    last. Raises ModelError for a model that cannot be run on `inputs`."""
    if model.training:
        raise ModelError("The model is in training mode; call model.eval() before editing it.")
    calls: ModuleCalls = []
    modules = dict(model.named_modules())
    with torch.no_grad(), hooks.watched(modules, lambda path, call: calls.append((path, call))):
        try:
            model(**inputs, use_cache=False, return_dict=True)
        except WANTS_OTHER_INPUTS as error:
            if is_out_of_memory(error):
                raise
            raise _not_run(model, inputs, error) from error
    return calls


def _not_run(model: Any, inputs: Mapping[str, Tensor], error: Exception) -> ModelError:
    message = (str(error).splitlines() or [""])[0][:MESSAGE_MAX] or name_of(error)
    shape = list(inputs["input_ids"].shape)
    return ModelError(
        f"{name_of(model)} could not be run on {', '.join(inputs)} of the shape {shape} "
        f"({message}): it needs other inputs than the tokens of a text. Models of this kind cannot "
        "be corrected; if it holds a text model, save that one alone, with its tokenizer."
    )
