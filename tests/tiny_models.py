"""Tiny random models of every architecture the engine is tested on: seeded, float32, eval mode.

Each name in ``TINY`` builds a model of three blocks in milliseconds. No two sizes that mean
different things are equal (attention is wider than the hidden state where the architecture lets it
be, encoders are not built like decoders), and no bias is left at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as hf
from torch import Tensor

VOCAB = 64
WIDTH = 16
FFN_WIDTH = 40
BLOCKS = 3
LABELS = 5


def tiny_model(name: str, seed: int = 0, ffn_width: int = FFN_WIDTH) -> Any:
    """A tiny model in eval mode, the same tensors for the same name and seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TINY[name](ffn_width).float().eval()
        _stir(model)
    return model.requires_grad_(False)


def tiny_inputs(
    model: Any, batch: int = 3, length: int = 7, padded: bool = False
) -> dict[str, Any]:
    """A batch of token ids; ``padded`` shortens its rows on the right, with an attention mask."""
    generator = torch.Generator().manual_seed(1)
    inputs: dict[str, Tensor] = {"input_ids": _ids(generator, batch, length)}
    if padded:
        inputs["attention_mask"] = (
            torch.arange(length) < length - torch.arange(batch)[:, None]
        ).long()
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = _ids(generator, batch, length - 2)
    return inputs


def _ids(generator: torch.Generator, batch: int, length: int) -> Tensor:
    return torch.randint(4, VOCAB, (batch, length), generator=generator)


@torch.no_grad()
def _stir(model: Any) -> None:
    """Weights large enough to matter, no bias at zero and no norm at one, so that none can hide."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.3)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for buffer in model.buffers():
        if buffer.is_floating_point() and not buffer.any():
            buffer.normal_(std=0.1)


def _llama_sizes(ffn: int) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": ffn,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
    }


def _bert_sizes(ffn: int) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": ffn,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
        "num_labels": LABELS,
    }


def _gpt2_config(ffn: int) -> Any:
    return hf.GPT2Config(
        vocab_size=VOCAB,
        n_embd=WIDTH,
        n_inner=ffn,
        n_layer=BLOCKS,
        n_head=4,
        n_positions=32,
        num_labels=LABELS,
        pad_token_id=0,
    )


def _gpt_neox(ffn: int) -> Any:
    sizes = _llama_sizes(ffn)
    del sizes["num_key_value_heads"]
    return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**sizes))


def _gptj(ffn: int) -> Any:
    config = hf.GPTJConfig(
        vocab_size=VOCAB,
        n_embd=WIDTH,
        n_inner=ffn,
        n_layer=BLOCKS,
        n_head=4,
        n_positions=32,
        rotary_dim=4,
    )
    return hf.GPTJForCausalLM(config)


def _opt(ffn: int, **changes: Any) -> Any:
    config = hf.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        ffn_dim=ffn,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        max_position_embeddings=32,
        **{"word_embed_proj_dim": WIDTH, **changes},
    )
    return hf.OPTForCausalLM(config)


def _bart(ffn: int) -> Any:
    config = hf.BartConfig(
        vocab_size=VOCAB,
        d_model=WIDTH,
        encoder_layers=4,
        decoder_layers=BLOCKS,
        encoder_ffn_dim=24,
        decoder_ffn_dim=ffn,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_position_embeddings=32,
    )
    return hf.BartForConditionalGeneration(config)


def _t5(ffn: int, **changes: Any) -> Any:
    config = hf.T5Config(
        vocab_size=VOCAB,
        d_model=WIDTH,
        d_kv=6,
        d_ff=ffn,
        num_layers=4,
        num_decoder_layers=BLOCKS,
        num_heads=4,
        decoder_start_token_id=0,
        **changes,
    )
    return hf.T5ForConditionalGeneration(config)


def _gemma2(ffn: int) -> Any:
    config = hf.Gemma2Config(**_llama_sizes(ffn), head_dim=6, final_logit_softcapping=0.5)
    return hf.Gemma2ForCausalLM(config)


def _mixtral(ffn: int) -> Any:
    config = hf.MixtralConfig(**_llama_sizes(ffn), num_local_experts=4, num_experts_per_tok=2)
    return hf.MixtralForCausalLM(config)


def _mamba2(_: int) -> Any:
    config = hf.Mamba2Config(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_heads=4,
        head_dim=8,
        state_size=6,
        n_groups=1,
        expand=2,
        chunk_size=4,
    )
    return hf.Mamba2ForCausalLM(config)


def _jamba(ffn: int) -> Any:
    config = hf.JambaConfig(
        **_llama_sizes(ffn),
        num_experts=2,
        num_experts_per_tok=1,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    )
    return hf.JambaForCausalLM(config)


TINY: Mapping[str, Callable[[int], Any]] = {
    "gpt2": lambda ffn: hf.GPT2LMHeadModel(_gpt2_config(ffn)),
    "gpt2-labels": lambda ffn: hf.GPT2ForSequenceClassification(_gpt2_config(ffn)),
    "gpt-neox": _gpt_neox,
    "gptj": _gptj,
    "opt": _opt,
    "opt-post-norm": lambda ffn: _opt(ffn, do_layer_norm_before=False),
    "opt-projected": lambda ffn: _opt(ffn, do_layer_norm_before=False, word_embed_proj_dim=12),
    "llama": lambda ffn: hf.LlamaForCausalLM(hf.LlamaConfig(**_llama_sizes(ffn))),
    "mistral": lambda ffn: hf.MistralForCausalLM(
        hf.MistralConfig(**_llama_sizes(ffn), sliding_window=4)
    ),
    "qwen2": lambda ffn: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_llama_sizes(ffn))),
    "qwen3": lambda ffn: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_llama_sizes(ffn), head_dim=6)),
    "phi3": lambda ffn: hf.Phi3ForCausalLM(hf.Phi3Config(**_llama_sizes(ffn), pad_token_id=0)),
    "granite": lambda ffn: hf.GraniteForCausalLM(
        hf.GraniteConfig(**_llama_sizes(ffn), logits_scaling=3.0, residual_multiplier=1.0)
    ),
    "bert": lambda ffn: hf.BertForMaskedLM(hf.BertConfig(**_bert_sizes(ffn))),
    "bert-labels": lambda ffn: hf.BertForSequenceClassification(hf.BertConfig(**_bert_sizes(ffn))),
    "roberta-labels": lambda ffn: hf.RobertaForSequenceClassification(
        hf.RobertaConfig(**_bert_sizes(ffn))
    ),
    "bart": _bart,
    "t5": lambda ffn: _t5(ffn, feed_forward_proj="relu", tie_word_embeddings=True),
    "t5-gated": lambda ffn: _t5(ffn, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "gemma2": _gemma2,
    "mixtral": _mixtral,
    "mamba2": _mamba2,
    "jamba": _jamba,
}
"""Every tiny model by name."""

FFNLESS = ("mixtral", "mamba2", "jamba")
"""Models whose blocks have no FFN that all share: mixtures, state-space blocks, blocks of several
kinds."""

NORMED_FFN = ("gemma2",)
"""Models that normalise the FFN's output before the residual sum: it has no site."""

BLOCK_SITED = (*FFNLESS, *NORMED_FFN)
"""Models that are edited at the output of their last block."""

FOUND = tuple(name for name in TINY if name not in FFNLESS)
"""Models whose FFNs are found."""

TAILED = tuple(name for name in FOUND if name not in NORMED_FFN)
"""Models whose logits can be computed row by row."""
