"""The plain loop of an attribution, beside the engine's: processor time and difference."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.knowledge_neurons.worlds import FactWorld
from continual import hooks
from continual.analysis.neurons import GoldToken
from continual.analysis.neurons.attribution import attribute
from continual.analysis.neurons.finding import FactNeurons
from continual.analysis.neurons.passes import PassMaker


def speed(world: FactWorld, found: Sequence[FactNeurons]) -> dict[str, Any]:
    """Return the processor time of the naive loop and of the engine on one prompt."""
    prompt = found[0].prompts[0]
    passes, steps = world.finder.passes, world.finder.steps
    gold = prompt.answer[0]
    attribute(passes, [gold], 1)  # the libraries prepare themselves
    began = time.process_time()
    engine = attribute(passes, [gold], steps).scores
    between = time.process_time()
    naive = torch.stack(
        [_naive(passes, gold, block, steps) for block in range(passes.anatomy.block_count)]
    )
    ended = time.process_time()
    return {
        "model": world.name,
        "way": passes.way.__name__,
        "tokens": len(gold.ids),
        "naive_s": ended - between,
        "engine_s": between - began,
        "ratio": (ended - between) / (between - began),
        "largest": float(naive.max()),
        "difference": float((naive - engine).abs().max()),
    }


def _naive(passes: PassMaker, gold: GoldToken, block: int, steps: int) -> Tensor:
    """Attribute one token to a block's neurons: a full forward and backward for each step."""
    model, down = passes.model, passes.anatomy.down_module(passes.model, block)
    inputs = gold.inputs(model.get_input_embeddings().weight.device)
    with torch.no_grad(), hooks.captured(down) as calls:
        model(**inputs)
    row = calls[0].input.reshape(-1, passes.anatomy.ffn_width)[gold.position]
    total = torch.zeros_like(row)
    for step in range(steps):
        scaled = (step / steps * row).requires_grad_()

        def alter(state: Tensor, scaled: Tensor = scaled) -> Tensor:
            flat = state.reshape(-1, state.shape[-1]).clone()
            flat[gold.position] = scaled
            return flat.reshape(state.shape)

        with torch.enable_grad(), hooks.fed(down, alter):
            share = model(**inputs).logits[0, gold.position].float().softmax(-1)[gold.target]
            total += torch.autograd.grad(share, scaled)[0]
    return (row / steps * total).float()
