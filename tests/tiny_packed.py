"""Tiny checkpoints that torchao and bitsandbytes packed, in the tiny language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tests import tiny_language as language


def _torchao(bits: int) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig

    whole = Int8WeightOnlyConfig()
    return hf.TorchAoConfig(whole if bits == 8 else IntxWeightOnlyConfig(weight_dtype=torch.int4))


def _bitsandbytes(bits: int) -> Any:
    if bits == 8:
        return hf.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)


PACKINGS: Mapping[str, Callable[[], Any]] = {
    "torchao-8": lambda: _torchao(8),
    "torchao-4": lambda: _torchao(4),
    "bitsandbytes-8": lambda: _bitsandbytes(8),
    "bitsandbytes-4": lambda: _bitsandbytes(4),
}
"""Every packing that runs on a CPU, by its library and its bits."""


def can_pack(packing: str) -> bool:
    """Whether the packages of a packing are here."""
    return all(map(find_spec, (packing.partition("-")[0], "accelerate")))


def save_packed(plain: Path, directory: Path, packing: str) -> Path:
    """Pack a model directory, as transformers does."""
    model = hf.AutoModelForCausalLM.from_pretrained(plain, quantization_config=PACKINGS[packing]())
    model.save_pretrained(directory)
    language.tokenizer().save_pretrained(directory)
    return directory
