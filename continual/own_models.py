"""Shared by the scripts that train the package's own models: tokenizer, directory, state on disk.

A run's state is saved whole or not at all, and resumed from the last whole one. Knows nothing of
what is trained; leaves batches, losses and schedules to the scripts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
STATE = "training.pt"
FOLDER = "model"
"""The folder inside a run's where the model is left."""


def train_tokenizer(
    texts: Iterable[str], size: int, context_tokens: int, more: Sequence[str] = ()
) -> Any:
    """Train a byte-level BPE of `size` tokens; a word has one spelling, at a start or inside.
    `more` are special tokens besides the end."""
    import transformers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END, *more],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = {"additional_special_tokens": list(more)} if more else {}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
        **special,
    )


def new_optimizer(model: Any, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Make the optimizer of a run."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=learning_rate,
        weight_decay=weight_decay,
        betas=(0.9, 0.98),
        fused=True,
    )


def schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Return the share of the learning rate at a step: it rises evenly, then falls as a cosine to
    two hundredths."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))


def descend(
    model: Any, optimizer: torch.optim.Optimizer, loss: torch.Tensor, learning_rate: float
) -> float:
    """Take one step down a loss, with the gradient's norm at most one; return the loss."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def save_half(model: Any, folder: Path) -> None:
    """Write a plain transformers directory; half-precision weights keep it small."""
    half_model = type(model)(model.config)
    half_model.load_state_dict(model.state_dict())
    half_model.half().save_pretrained(folder)


def save_state(
    out: Path, model: Any, optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]
) -> None:
    """Save a run's state in its folder, whole or not at all; `progress` are plain values."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **progress}
    path = (out / STATE).with_suffix(".tmp")
    torch.save(state, path)
    path.replace(out / STATE)


def resume(out: Path, model: Any, optimizer: torch.optim.Optimizer) -> Mapping[str, Any]:
    """Load the state that a run saved in its folder into model and optimizer; return its progress,
    empty without one."""
    path = out / STATE
    if not path.exists():
        return {}
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state.pop("model"))
    optimizer.load_state_dict(state.pop("optimizer"))
    progress: Mapping[str, Any] = state
    return progress
