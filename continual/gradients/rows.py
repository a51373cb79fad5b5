"""Reads rows: inputs of matrices, and gradients at their outputs, where answers are predicted.

Runs the model as it stands, with hooks that are gone afterwards, and copies nothing of it. The loss
of a text is the mean over its answer's tokens of -log p(token), and that of several texts the sum:
a text's rows do not depend on the texts beside it, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from continual import hooks
from continual.errors import ModelError
from continual.passes.partial import logits_of
from continual.task_model import TaskModel, answer_logits
from continual.tasks import Encoding, answer_places, sequences


def read_rows(
    task_model: TaskModel, modules: Mapping[str, nn.Module], encodings: Sequence[Encoding]
) -> dict[str, Tensor]:
    """Return rows [tokens, inputs + outputs] float32 on the CPU for each linear layer: h, and
    beside it g. The tokens are the answers' in their order.

    The same texts in the same order give the same bits. Raises ModelError for a layer that does not
    run once in a pass, or that the answers do not depend on.
    """
    of_texts = task_model.in_passes(partial(_read_pass, task_model, modules), encodings)
    return {name: torch.cat([rows[name] for rows in of_texts]) for name in modules}


def _read_pass(
    task_model: TaskModel, modules: Mapping[str, nn.Module], encodings: Sequence[Encoding]
) -> list[dict[str, Tensor]]:
    """Return the rows of each text of one pass, by layer."""
    model, inputs = task_model.edited.model, task_model.inputs(encodings)
    with torch.enable_grad(), _tapped(modules) as taps:
        logits, targets = answer_logits(encodings, logits_of(model, inputs))
        loss = (_shares(encodings, logits) * _costs(logits, targets)).sum()
        rows = {name: tap.rows(name, loss, encodings) for name, tap in taps.items()}
    sizes = [len(encoding.targets) for encoding in encodings]
    by_layer = {name: tensor.split(sizes) for name, tensor in rows.items()}
    return [{name: parts[i] for name, parts in by_layer.items()} for i in range(len(sizes))]


def _costs(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def _shares(encodings: Sequence[Encoding], like: Tensor) -> Tensor:
    """Return the weight [n] of each token among the answer tokens of its text."""
    return like.new_tensor([1.0 / len(e.targets) for e in encodings for _ in e.targets])


@dataclass
class _Tap:
    """The inputs of one layer, and zeros added to its outputs, which take the gradient."""

    inputs: list[Tensor] = field(default_factory=list)
    zeros: list[Tensor] = field(default_factory=list)

    def add(self, hidden: Tensor) -> Tensor:
        """Add zeros that take the gradient to an output."""
        self.zeros.append(torch.zeros_like(hidden, requires_grad=True))
        return hidden + self.zeros[-1]

    def rows(self, name: str, loss: Tensor, encodings: Sequence[Encoding]) -> Tensor:
        """Return the rows [tokens, inputs + outputs] of the pass."""
        if len(self.inputs) != 1:
            raise ModelError(
                f"{name} ran {len(self.inputs)} times in one pass, where gradients of one run are "
                "needed: choose other blocks, or an editor that needs no gradients."
            )
        (gradient,) = torch.autograd.grad(loss, self.zeros, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise ModelError(f"The answers do not depend on {name}: choose other blocks.")
        count = len(sequences(encodings)[0])
        sequence, position = answer_places(encodings, gradient.device)
        parts = (self.inputs[0], gradient)
        picked = [p.reshape(count, -1, p.shape[-1])[sequence, position].float() for p in parts]
        return torch.cat(picked, 1).detach().cpu()


@contextmanager
def _tapped(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, _Tap]]:
    """Record the inputs and the gradients at the outputs of linear layers within `with`."""
    taps = {name: _Tap() for name in modules}

    def see(name: str, call: hooks.Call) -> None:
        taps[name].inputs.append(call.input.detach())

    with ExitStack() as stack:
        stack.enter_context(hooks.watched(modules, see))
        for name, module in modules.items():
            stack.enter_context(hooks.altered(module, taps[name].add))
        yield taps
