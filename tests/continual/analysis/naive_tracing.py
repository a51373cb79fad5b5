"""Causal tracing as its paper's code does it: hooks on the whole model, one place at a time.

Shares nothing with the engine: modules are named here, for each architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

PATHS = {
    "gpt2": ("transformer.wte", "transformer.h.{}", "mlp", "attn"),
    "llama": ("model.embed_tokens", "model.layers.{}", "mlp", "self_attn"),
    "qwen2": ("model.embed_tokens", "model.layers.{}", "mlp", "self_attn"),
    "mistral": ("model.embed_tokens", "model.layers.{}", "mlp", "self_attn"),
    "gpt-neox": ("gpt_neox.embed_in", "gpt_neox.layers.{}", "mlp", "attention"),
    "gptj": ("transformer.wte", "transformer.h.{}", "mlp", "attn"),
    "gemma2": ("model.embed_tokens", "model.layers.{}", "mlp", "self_attn"),
}

Place = tuple[str, int, int]
"""Kind, token, block."""


class Naive:
    """Runs row 0 clean and the others noisy, with places of the others restored or held."""

    def __init__(self, model: Any, name: str, blocks: int) -> None:
        embedding, block, ffn, attention = PATHS[name]
        self.model = model
        self.embedding = model.get_submodule(embedding)
        ends = {"state": "", "ffn": f".{ffn}", "attention": f".{attention}"}
        self.modules = {
            (kind, i): model.get_submodule(block.format(i) + end)
            for kind, end in ends.items()
            for i in range(blocks)
        }

    @torch.no_grad()
    def logs(
        self,
        ids: Sequence[int],
        subject: Sequence[int],
        noise: Tensor,
        answer: tuple[Sequence[int], Sequence[int]],
        restored: Sequence[Place] = (),
        held: Sequence[Place] = (),
    ) -> Tensor:
        """Log-probabilities [1 + S, A] of the answer's tokens at its positions."""
        kept: dict[Place, Tensor] = {}
        if held:
            self._run(ids, subject, noise, [(place, _keep(kept, place)) for place in held])
        changes = [(place, _restore(place[1])) for place in restored]
        changes += [(place, _put(place[1], kept[place])) for place in held]
        logits = self._run(ids, subject, noise, changes)
        positions, targets = answer
        found = logits[:, list(positions)].double().log_softmax(-1)
        return found[:, range(len(targets)), list(targets)]

    def _run(
        self,
        ids: Sequence[int],
        subject: Sequence[int],
        noise: Tensor,
        changes: Sequence[tuple[Place, Callable[[Tensor], Tensor]]],
    ) -> Tensor:
        def noisy(_: Any, __: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[1:, list(subject)] += noise
            return output

        with ExitStack() as stack:
            handle = self.embedding.register_forward_hook(noisy)
            stack.callback(handle.remove)
            for (kind, _, block), change in changes:
                module = self.modules[kind, block]
                stack.callback(module.register_forward_hook(_changed(change)).remove)
            batch = torch.tensor([list(ids)] * (1 + len(noise)))
            return self.model(input_ids=batch, use_cache=False).logits


def _changed(change: Callable[[Tensor], Tensor]) -> Callable[[Any, Any, Any], Any]:
    def hook(_: Any, __: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return change(output)
        return (change(output[0]), *output[1:])

    return hook


def _restore(token: int) -> Callable[[Tensor], Tensor]:
    def change(hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        hidden[1:, token] = hidden[0, token]
        return hidden

    return change


def _keep(kept: dict[Place, Tensor], place: Place) -> Callable[[Tensor], Tensor]:
    def change(hidden: Tensor) -> Tensor:
        kept[place] = hidden[1:, place[1]].clone()
        return hidden

    return change


def _put(token: int, values: Tensor) -> Callable[[Tensor], Tensor]:
    def change(hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        hidden[1:, token] = values
        return hidden

    return change
