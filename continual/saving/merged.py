"""A plain transformers model with an edited model's edits in its parameters.

Sums of parameters stand in them already; neurons become units of wider FFNs (`widening`), under
another config, and where an architecture has no biases there, as another one that is the same
function (`llama`). Everything else stays behind, by its kind. Knows the model as it stands; leaves
files to the forms, and the choice of what may stay behind to a person.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from continual.effects import (
    CODEBOOK,
    CONTEXTS,
    FACTORS,
    GATES,
    LOOKUP,
    MEMORY,
    NEURONS,
    SUBJECTS,
)
from continual.effects.gated import NeuronBank
from continual.errors import ModelError
from continual.loading import assembled
from continual.model import EditedModel
from continual.model.edited import cannot_go_along
from continual.saving.architectures import LLAMA, WiderFfn, architecture_of
from continual.saving.llama import as_llama
from continual.saving.rounding import rounded
from continual.saving.widening import Units, relu_from, scale_for, widen
from continual.storage import is_plain

HALF_BYTES = 2  # of a number in half precision
LoadBase = Callable[[torch.dtype], Any]
"""Loads the base model anew, in a number format."""


@dataclass(frozen=True)
class ActivationRange:
    """The activations q·k + b of a block's neurons on all probes."""

    least: float | None  # in magnitude, without zero; None if nothing was seen
    largest: float  # in magnitude
    centres: Tensor | None = None  # [n, d] the mean of the queries on which each neuron fires


UNSEEN = ActivationRange(None, 1.0)
REASONS: Mapping[str, str] = {
    SUBJECTS: "no FFN looks for words: neurons made with [editor.tpatcher] asks_subject = false do",
    CONTEXTS: "no FFN takes a mean of tokens: neurons made with [anatomy] context = none go along",
    GATES: "an FFN reads and writes at its own place",
    CODEBOOK: "no FFN replaces its output",
    LOOKUP: "no FFN compares its key with others by their cosine",
    MEMORY: "a plain model looks nothing up",
    FACTORS: "nothing is written into that matrix: save --as peft",
}
"""The reasons why edits of a kind are nothing that a transformers model has."""


@dataclass(frozen=True)
class Widening:
    """The units that came into a model's FFNs."""

    before: int  # the width of the FFN without them
    width: int
    neurons: int
    scale: float  # the largest c of `widening`
    written_as: str  # the model type

    def to_json(self) -> dict[str, Any]:
        """Return its facts by name."""
        return dict(vars(self))


@dataclass(frozen=True)
class PlainModel:
    """A transformers model that needs nothing of cedit."""

    model: Any
    widening: Widening | None


def neurons_obstacle(edited: EditedModel) -> str:
    """Return the reason why the model cannot say the neurons at its FFNs; empty if it can."""
    config = edited.model.config
    architecture = architecture_of(config)
    if architecture.wider is None:
        return f"{architecture.title} cannot say them: {architecture.note}"
    if obstacle := architecture.obstacle(config):
        return f"this {architecture.title} cannot say them: {obstacle}"
    activation = getattr(config, architecture.wider.activation)
    if relu_from(activation) is None:
        return f"{architecture.title} cannot say them: {activation} is never ReLU"
    if not architecture.wider.is_gated and not _has_bias(edited):
        return f"this {architecture.title} cannot say them: its FFN has no bias"
    return ""


def _has_bias(edited: EditedModel) -> bool:
    return all(
        up.bias is not None for up in edited.anatomy.up_modules(edited.model, edited.anatomy.last)
    )


def staying(edited: EditedModel) -> dict[str, str]:
    """Return the kinds of edits on a model that no plain model of its kind can say, each with the
    reason."""
    reasons = {kind: REASONS.get(kind, "") for kind in edited.beside}
    if NEURONS in reasons:
        reasons[NEURONS] = neurons_obstacle(edited)
    return {kind: reason for kind, reason in reasons.items() if reason}


def plain_model(
    edited: EditedModel,
    *,
    without: Collection[str] = (),
    dtype: torch.dtype | None = None,
    load_base: LoadBase | None = None,
    ranges: Mapping[int, ActivationRange] | None = None,
    caller: str = "a plain model",
) -> PlainModel:
    """Make a plain model with the edits, except for the kinds in `without`.

    `dtype` is its number format, the edited model's own unless given; for another one `load_base`
    loads the base in it. `ranges` has the activations of each block's neurons. It may share memory
    with the edited model. Raises ModelError, which names the `caller`, if another kind cannot go
    along.
    """
    remaining = {k: n for k, n in edited.beside.items() if k in staying(edited)}
    if remaining.keys() - {*without}:
        raise ModelError(cannot_go_along(remaining, caller))
    own_dtype = next(edited.model.parameters()).dtype
    number_format = dtype or own_dtype
    is_loaded_anew = number_format != own_dtype or not is_plain(edited.model)
    state = _state(edited, number_format, load_base if is_loaded_anew else None)
    config, model_class = copy.deepcopy(edited.model.config), type(edited.model)
    config.dtype = number_format
    banks = {} if NEURONS in without else edited.plain_neurons
    widening = None
    if banks:
        architecture = architecture_of(config)
        assert architecture.wider is not None
        if architecture.becomes == LLAMA:
            config, model_class = as_llama(config, model_class, state)
        units = _units(banks, config, architecture.wider, ranges or {})
        widening = _widened(edited, config, state, units, architecture.wider)
    model = assembled(model_class, config, state, number_format)
    if model.can_generate():
        model.generation_config = copy.deepcopy(edited.model.generation_config)
    return PlainModel(model, widening)


def _state(
    edited: EditedModel, dtype: torch.dtype, load_base: LoadBase | None
) -> dict[str, Tensor]:
    """Return the model's tensors by name, edited parameters with their sums."""
    if load_base is None:
        return {name: tensor.detach() for name, tensor in edited.model.state_dict().items()}
    state = dict(load_base(dtype).state_dict())
    for name, total in edited.edited_parameters.items():
        if name in state:
            state[name] = total.to(state[name]).contiguous()
    return state


def _units(
    banks: Mapping[int, NeuronBank],
    config: Any,
    wider: WiderFfn,
    ranges: Mapping[int, ActivationRange],
) -> dict[int, Units]:
    activation, units = getattr(config, wider.activation), {}
    for block, bank in banks.items():
        seen = ranges.get(block, UNSEEN)
        scale = scale_for(activation, seen.least, seen.largest, config.dtype)
        assert scale is not None  # see `neurons_obstacle`
        is_plain = bank.is_plain.to(bank.keys.device)
        keys, bias = bank.keys[is_plain], bank.bias[is_plain]
        if seen.centres is not None and config.dtype.itemsize == HALF_BYTES:
            keys, bias = rounded(keys, bias, seen.centres, config.dtype)
        units[block] = Units(keys, bias, bank.values[is_plain], scale)
    return units


def _widened(
    edited: EditedModel,
    config: Any,
    state: dict[str, Tensor],
    units: Mapping[int, Units],
    wider: WiderFfn,
) -> Widening:
    width = widen(state, edited.anatomy, units, is_gated=wider.is_gated)
    setattr(config, wider.width, width)
    if wider.is_gated:
        config.mlp_bias = True
    return Widening(
        edited.anatomy.ffn_width,
        width,
        sum(map(len, units.values())),
        max(block_units.scale for block_units in units.values()),
        config.model_type,
    )
