"""A tiny random Qwen2 as a GGUF file: matrices in 8 bits, a token for each byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM

END = "<|endoftext|>"
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", END]
WIDTH, FFN, BLOCKS, HEADS, KEY_HEADS = 64, 128, 2, 4, 2
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def random_model(seed: int = 0) -> Any:
    """A Qwen2 whose answers are spread over its tokens."""
    config = Qwen2Config(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.25)
    return model


def name_of(path: str) -> str:
    """The name in GGUF of a parameter by its path in transformers."""
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if path in fixed:
        return fixed[path]
    _, _, block, *middle, kind = path.split(".")
    return f"blk.{block}.{NAMES['.'.join(middle)]}.{kind}"


def write_gguf(path: Path, seed: int = 0) -> Path:
    """Write the model: matrices in 8 bits (Q8_0), vectors as they are."""
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([*[gguf.TokenType.NORMAL] * (len(TOKENS) - 1), gguf.TokenType.CONTROL])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(len(TOKENS) - 1)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, parameter in random_model(seed).named_parameters():
        array = parameter.detach().numpy().astype(np.float32)
        if array.ndim == 2:
            writer.add_tensor(name_of(name), gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name_of(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def numbers(path: Path) -> dict[str, np.ndarray]:
    """The numbers of a file by their names in it, as the package gguf unpacks them."""
    reader = gguf.GGUFReader(str(path))
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
