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
    task_model: TaskModel,
    modules: Mapping[str, nn.Module],
    encodings: Sequence[Encoding],
    *,
    whole: bool = False,
) -> dict[str, Tensor]:
    """Return rows [tokens, inputs + outputs] float32 on the CPU for each linear layer: h, and
    beside it g. The tokens are the answers' in their order, or all tokens of the `whole` texts.

    The same texts in the same order give the same bits. Raises ModelError for a layer that does not
    run once in a pass, or that the answers do not depend on.
    """
    read = partial(_read_pass, task_model, modules, whole=whole)
    of_texts = task_model.in_passes(read, encodings)
    return {name: torch.cat([rows[name] for rows in of_texts]) for name in modules}


def places_of(encoding: Encoding, *, whole: bool) -> Sequence[int]:
    """Return the positions of a text's rows: where its answer is predicted, or all."""
    return range(len(encoding.ids)) if whole else encoding.positions


def with_gradient(rows: Mapping[str, Tensor], inputs: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the rows of one text without the tokens that have no gradient at any layer; `inputs`
    are the layers' widths. A text without any gradient keeps its last token."""
    has_gradient = torch.stack([rows[n][:, width:].any(1) for n, width in inputs.items()]).any(0)
    has_gradient[-1] |= ~has_gradient.any()
    return {name: of_layer[has_gradient] for name, of_layer in rows.items()}


def _read_pass(
    task_model: TaskModel,
    modules: Mapping[str, nn.Module],
    encodings: Sequence[Encoding],
    *,
    whole: bool,
) -> list[dict[str, Tensor]]:
    """Return the rows of each text of one pass, by layer."""
    model, inputs = task_model.edited.model, task_model.inputs(encodings)
    with torch.enable_grad(), _tapped(modules) as taps:
        logits, targets = answer_logits(encodings, logits_of(model, inputs))
        loss = (_shares(encodings, logits) * _costs(logits, targets)).sum()
        places = _places(encodings, loss.device, whole=whole)
        rows = {name: tap.rows(name, loss, encodings, places) for name, tap in taps.items()}
    sizes = [len(places_of(encoding, whole=whole)) for encoding in encodings]
    by_layer = {name: tensor.split(sizes) for name, tensor in rows.items()}
    return [{name: parts[i] for name, parts in by_layer.items()} for i in range(len(sizes))]


def _places(
    encodings: Sequence[Encoding], device: torch.device, *, whole: bool
) -> tuple[Tensor, Tensor]:
    """Return the (sequence, position) of every row of a pass: [n] each."""
    if not whole:
        return answer_places(encodings, device)
    places = [(i, p) for i, e in enumerate(encodings) for p in range(len(e.ids))]
    sequence, position = torch.tensor(places, device=device).T
    return sequence, position


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

    def rows(
        self,
        name: str,
        loss: Tensor,
        encodings: Sequence[Encoding],
        places: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return the rows [tokens, inputs + outputs] of the pass at some (sequence, position)."""
        if len(self.inputs) != 1:
            raise ModelError(
                f"{name} ran {len(self.inputs)} times in one pass, where gradients of one run are "
                "needed: choose other blocks, or an editor that needs no gradients."
            )
        (gradient,) = torch.autograd.grad(loss, self.zeros, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise ModelError(f"The answers do not depend on {name}: choose other blocks.")
        count = len(sequences(encodings)[0])
        sequence, position = places
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
