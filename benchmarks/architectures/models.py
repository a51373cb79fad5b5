"""Tiny random models of the classes that transformers has for a task.

A class's own default config is shrunk: entries for widths, numbers of layers and heads, and the
vocabulary get small values, in its parts as well. Knows by name a few classes with sizes that
depend on each other. A class that cannot be built so is reported, and counts against nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers.processors import TemplateProcessing
from transformers.models.auto import configuration_auto, modeling_auto

from continual.embedded import ATLAS

LAYERS, WIDTH, FFN, HEADS, KV_HEADS, HEAD_WIDTH, LABELS = 4, 64, 112, 4, 2, 16, 3
TASKS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
}
"""By task, transformers' table of classes."""

MOST_USED = (
    *("llama", "mistral", "qwen2", "qwen3", "qwen3_5_text", "gemma", "gemma2", "gemma3_text"),
    *("phi", "phi3", "gpt2", "gpt_neox", "gptj", "gpt_neo", "opt", "bloom", "falcon", "mpt"),
    *("olmo", "olmo2", "stablelm", "starcoder2", "cohere", "granite", "smollm3", "glm4"),
    *("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "mamba", "bert", "roberta"),
)
SHORT = (
    *(("causal", kind) for kind in MOST_USED),
    *(("seq2seq", kind) for kind in ("bart", "t5", "mbart")),
    *(("classification", kind) for kind in ("bert", "roberta", "distilbert", "llama")),
)
"""The short form: forty classes of the most used."""


@dataclass(frozen=True)
class ModelClass:
    """One of the classes that transformers has for a task."""

    task: str
    model_type: str
    name: str

    @property
    def key(self) -> str:
        """The name of the class in a table of results."""
        return f"{self.task}/{self.model_type}"


def kinds() -> Iterator[ModelClass]:
    """Yield all classes of all tasks, in transformers' order."""
    for task, table in TASKS.items():
        for model_type, name in getattr(modeling_auto, table).items():
            yield ModelClass(task, model_type, name if isinstance(name, str) else name[0])


def build(kind: ModelClass, directory: Path, *, seed: int = 0) -> None:
    """Write a model directory: a tiny random model with the atlas's tokenizer.

    Raises whatever transformers raises for a class that cannot be made small so.
    """
    tokenizer = hf.AutoTokenizer.from_pretrained(ATLAS.directory)
    config = tiny_config(kind, len(tokenizer))
    torch.manual_seed(seed)
    model = getattr(hf, kind.name)(config).eval()
    stir(model)
    _require_forward(kind, model)
    model.generation_config = hf.GenerationConfig.from_model_config(config)
    model.save_pretrained(directory)
    if kind.task == "classification" and getattr(config, "is_encoder_decoder", False):
        _end_texts(tokenizer, config.eos_token_id)
    tokenizer.save_pretrained(directory)


def _end_texts(tokenizer: Any, end: int) -> None:
    """Make the tokenizer put the end token behind each text, as tokenizers of encoders do."""
    mark = tokenizer.convert_ids_to_tokens(end)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=["$A", mark], special_tokens=[(mark, end)]
    )


@torch.no_grad()
def _require_forward(kind: ModelClass, model: Any) -> None:
    """Run transformers' own forward once, so that a tiny config with mismatched sizes raises."""
    inputs = {"input_ids": torch.arange(10, 17)[None]}
    if kind.task == "seq2seq":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    elif getattr(model.config, "is_encoder_decoder", False):
        inputs["input_ids"][0, -1] = model.config.eos_token_id  # a classifier looks there
    model(**inputs, use_cache=False)


@torch.no_grad()
def stir(model: Any) -> None:
    """Draw weights large enough to matter, and move biases off zero and norms off one, in place."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.15)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


# --- configs --------------------------------------------------------------------------------------

_SIZES: tuple[tuple[int, tuple[str, ...]], ...] = (
    (
        WIDTH,
        (
            *("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size"),
            *("word_embed_proj_dim", "lru_width", "kv_dim", "embedding_dim", "decoder_hidden_size"),
            *("hidden_size_per_layer_input", "time_mix_hidden", "attention_hidden_size"),
        ),
    ),
    (
        FFN,
        (
            *("intermediate_size", "ffn_dim", "n_inner", "d_ff", "encoder_ffn_dim", "d_inner"),
            *("decoder_ffn_dim", "ffn_hidden_size", "hidden_dim", "dense_intermediate_size"),
            *(
                "shared_expert_intermediate_size",
                "intermediate_size_mlp",
                "shared_intermediate_size",
            ),
        ),
    ),
    (
        40,
        ("moe_intermediate_size", "expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"),
    ),
    (
        LAYERS,
        (
            *("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers"),
            *("decoder_layers", "num_decoder_layers", "num_encoder_layers", "num_blocks"),
        ),
    ),
    (
        HEADS,
        (
            *("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"),
            *("decoder_attention_heads", "num_decoder_attention_heads", "mamba_n_heads"),
            *(
                "num_encoder_attention_heads",
                "num_experts",
                "num_local_experts",
                "n_routed_experts",
            ),
            *("moe_num_experts", "linear_num_value_heads", "mamba_num_heads"),
        ),
    ),
    (
        KV_HEADS,
        (
            *("num_key_value_heads", "num_kv_heads", "num_experts_per_tok", "moe_k", "moe_topk"),
            *("num_decoder_key_value_heads", "num_encoder_key_value_heads", "top_k_experts"),
            *("linear_num_key_heads", "multi_query_group_num"),
        ),
    ),
    (1, ("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts", "mamba_n_groups")),
    (
        HEAD_WIDTH,
        (
            *(
                "head_dim",
                "d_kv",
                "v_head_dim",
                "qk_nope_head_dim",
                "swa_head_dim",
                "global_head_dim",
            ),
            *(
                "linear_key_head_dim",
                "linear_value_head_dim",
                "attention_head_dim",
                "kv_channels",
                "qk_rope_head_dim",
            ),
        ),
    ),
    (8, ("state_size", "mamba_d_state", "rotary_dim", "ssm_state_size")),
    (32, ("q_lora_rank", "kv_lora_rank", "mamba_d_head", "mamba_head_dim", "rank")),
    (
        128,
        (
            *("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"),
            *("max_seq_length", "max_source_positions", "max_target_positions", "n_ctx"),
        ),
    ),
)
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
_BY_TYPE: Mapping[str, Mapping[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8, "num_layers": 4},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "expand": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "ctrl": {"dff": FFN},
    "mpt": {"expansion_ratio": 2},
    "bert": {"is_decoder": True},
    "t5": {"decoder_start_token_id": 0},
    "t5gemma": {"decoder_start_token_id": 1},  # it masks padding, of the decoder too
}
_LISTS = ("layer_types", "layers_block_type", "mlp_layer_types", "no_rope_layers", "block_types")


def tiny_config(kind: ModelClass, vocabulary: int) -> Any:
    """Return a config of the class with small sizes."""
    config_class = getattr(hf, configuration_auto.CONFIG_MAPPING_NAMES[kind.model_type])
    told = _shrunk(config_class, vocabulary) | dict(_BY_TYPE.get(kind.model_type, {}))
    if kind.task == "classification":
        told |= {"num_labels": LABELS}
        told.pop("is_decoder", None)
    if kind.task == "causal" and kind.model_type in configuration_auto.CONFIG_MAPPING_NAMES:
        defaults = config_class().to_dict()
        if "is_decoder" in defaults and not defaults.get("is_encoder_decoder"):
            told |= {"is_decoder": True}
    return config_class(**told)


def _shrunk(config_class: Any, vocabulary: int) -> dict[str, Any]:
    """Return the arguments of a config: its own entries with small values, and its parts'."""
    defaults = config_class()
    named = defaults.to_dict()
    told: dict[str, Any] = {"vocab_size": vocabulary, **_SPECIAL}
    for size, names in _SIZES:
        told |= {name: size for name in names if isinstance(named.get(name, ""), int | None)}
        told = {k: v for k, v in told.items() if k in named or k in _SPECIAL or k == "vocab_size"}
    if "kv_lora_rank" in named:  # latent attention has as many keys as queries
        told["num_key_value_heads"] = HEADS
    for name in _LISTS:
        if isinstance(named.get(name), list) and named[name]:
            told[name] = _spread(named[name])
    for part in getattr(defaults, "sub_configs", {}):
        own = getattr(defaults, part, None)
        if isinstance(own, hf.PretrainedConfig):
            told[part] = {**_shrunk(type(own), vocabulary), "model_type": own.model_type}
    return told


def _spread(values: list[Any]) -> list[Any]:
    """Return the values of LAYERS layers, with at least one of each kind in `values`, the kinds in
    their first order."""
    different = list(dict.fromkeys(map(str, values)))
    first = [next(v for v in values if str(v) == text) for text in different][:LAYERS]
    return sorted((first * LAYERS)[:LAYERS], key=lambda v: different.index(str(v)))


def quiet() -> None:
    """Turn off the progress bars and warnings of transformers, so that the table can be read."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
