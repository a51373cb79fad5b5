"""The architectures whose FFNs can be widened by an editor's neurons, in a table.

A neuron relu(q·k + b)·v stands beside a block's FFN. A plain model can say it itself, by a unit
more in that FFN, if its FFN has biases and an activation that is ReLU for large inputs: act(c·a)/c
is relu(a) for a large c. A gated FFN, act(gate)·up, needs biases on both: the unit's up is 1.

Knows names of fields in configs. Leaves the tensors to `widening`, and the proof to the forms:
each saved model is loaded by transformers alone and asked every probe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

LLAMA = "llama"


@dataclass(frozen=True)
class WiderFfn:
    """The fields of a config that make its FFN wider."""

    width: str  # the field with the FFN's width
    activation: str  # the field with the activation's name
    is_gated: bool = False  # act(gate)·up, with biases where `mlp_bias` says so


@dataclass(frozen=True)
class Architecture:
    """An architecture, and the way in which it says neurons; `wider` is None if it cannot."""

    title: str
    wider: WiderFfn | None
    note: str  # the way in words, or the reason why there is none
    becomes: str | None = None  # the model type as which it is written; None: its own
    obstacle: Callable[[Any], str] = lambda _config: ""
    """The reason why a model of this config cannot be written so; empty for none."""


def _no_window(config: Any) -> str:
    """Return the obstacle of a sliding window, which Llama does not have."""
    window = getattr(config, "sliding_window", None)
    is_used = getattr(config, "use_sliding_window", True) and window is not None
    if not is_used or window >= config.max_position_embeddings:
        return ""
    return f"its attention sees {window} tokens back (sliding_window), and Llama's sees all"


def _plain(title: str, width: str, activation: str) -> Architecture:
    return Architecture(title, WiderFfn(width, activation), f"a wider FFN (`{width}`)")


def _gated(title: str) -> Architecture:
    wider = WiderFfn("intermediate_size", "hidden_act", is_gated=True)
    return Architecture(title, wider, "a wider FFN (`intermediate_size`), with `mlp_bias`")


def _as_llama(title: str, condition: str) -> Architecture:
    note = f"written as Llama with a wider FFN and `mlp_bias`{condition}"
    return Architecture(title, _gated(title).wider, note, LLAMA, _no_window)


def _silent(title: str, reason: str) -> Architecture:
    return Architecture(title, None, reason)


_NO_BIAS = "its FFN has no bias, so that no unit can have a threshold"

ARCHITECTURES: Mapping[str, Architecture] = {
    "gpt2": _plain("GPT-2", "n_inner", "activation_function"),
    "gptj": _plain("GPT-J", "n_inner", "activation_function"),
    "gpt_neo": _plain("GPT-Neo", "intermediate_size", "activation_function"),
    "gpt_neox": _plain("GPT-NeoX", "intermediate_size", "hidden_act"),
    "opt": _plain("OPT", "ffn_dim", "activation_function"),
    "phi": _plain("Phi", "intermediate_size", "hidden_act"),
    "starcoder2": _plain("StarCoder2", "intermediate_size", "hidden_act"),
    "bert": _plain("BERT", "intermediate_size", "hidden_act"),
    "roberta": _plain("RoBERTa", "intermediate_size", "hidden_act"),
    "xlm-roberta": _plain("XLM-RoBERTa", "intermediate_size", "hidden_act"),
    "bart": _plain("BART", "decoder_ffn_dim", "activation_function"),
    LLAMA: _gated("Llama"),
    "granite": replace(
        _gated("Granite"),
        note="as Llama, where `residual_multiplier` is 1; else neurons stand at a block's output",
    ),
    "mistral": _as_llama("Mistral", ", unless its attention has a sliding window"),
    "qwen2": _as_llama("Qwen2", ", unless its attention has a sliding window"),
    "qwen3": _silent("Qwen3", f"{_NO_BIAS}, and Llama lacks the norms of its queries and keys"),
    "t5": _silent("T5", f"{_NO_BIAS}, and its encoder shares the FFN's width"),
    "mt5": _silent("mT5", f"{_NO_BIAS}, and its encoder shares the FFN's width"),
    "phi3": _silent("Phi-3", _NO_BIAS),
    "gemma": _silent("Gemma", _NO_BIAS),
    "gemma2": _silent("Gemma 2", "its neurons stand at a block's output, behind a norm"),
    "gemma3_text": _silent("Gemma 3", "its neurons stand at a block's output, behind a norm"),
    "olmo2": _silent("OLMo 2", "its neurons stand at a block's output, behind a norm"),
    "bloom": _silent("BLOOM", "its FFN's width is four times the model's, whatever the config"),
    "mixtral": _silent("Mixtral", "its FFNs are a mixture of experts"),
}
"""Architectures by the `model_type` of their configs."""


def architecture_of(config: Any) -> Architecture:
    """Return the entry of a config's architecture; one that cannot say neurons if it has none."""
    kind = config.model_type
    unknown = _silent(kind, "cedit's table has no way to widen its FFN")
    return ARCHITECTURES.get(kind, unknown)


HEADER = ("architecture", "edits of weights", "neurons, as transformers", "peft")


def table_rows() -> list[tuple[str, str, str, str]]:
    """Return the table for people, a row for each architecture under `HEADER`."""
    return [
        (
            architecture.title,
            "merged",
            ("yes: " if architecture.wider else "no: ") + architecture.note,
            "low-rank edits",
        )
        for architecture in ARCHITECTURES.values()
    ]
