"""The edited model with its task: probes become inputs, are asked in passes, and are judged.

Knows whole forward passes, of the edited model or of another one, and the tail that makes logits of
the last block's residual sum. Leaves what is read inside the model to `site` and `passes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from continual.model import EditedModel
from continual.passes.batching import by_length
from continual.passes.partial import RowTail, find_tail, logits_of
from continual.tasks import Encoding, Task, answer_places, sequences
from continual.verdicts import tie_of, verdict_of

PASS_TOKENS_MAX = 4096
PASS_LOGITS_MAX = 2**28  # of a pass that shows the logits of all tokens


class TaskModel:
    """An edited model, asked as its task asks. Used within the model's `with` block."""

    def __init__(self, edited: EditedModel, task: Task) -> None:
        self.edited = edited
        self.task = task
        self.tail: RowTail = find_tail(edited.model, edited.anatomy)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The number format of the model's parameters."""
        parameter: Tensor = next(self.edited.model.parameters())
        return parameter.dtype

    @cached_property
    def tie(self) -> float:
        """The share of a row's largest logit by which two logits are close; see `tie_of`."""
        return tie_of(self.dtype)

    @cached_property
    def choices(self) -> int:
        """How many logits a row has: tokens, or labels."""
        width, device = self.edited.anatomy.width, self.edited.device
        return self.tail(torch.zeros(1, width, dtype=self.dtype, device=device)).shape[-1]

    def inputs(self, encodings: Sequence[Encoding]) -> dict[str, Tensor]:
        """The model's inputs for a pass over these probes, on its device."""
        inputs = self.task.inputs(sequences(encodings)[0])
        return {name: tensor.to(self.edited.device) for name, tensor in inputs.items()}

    @torch.no_grad()
    def judge_in_full(self, encodings: Sequence[Encoding], model: Any = None) -> list[bool]:
        """Which probes are right, by forward passes of the whole edited model, or another one."""
        outcomes: dict[int, bool] = {}
        tokens_max = min(PASS_TOKENS_MAX, max(1, PASS_LOGITS_MAX // self.choices))
        for batch in length_sorted(encodings, tokens_max):
            chosen = [encodings[i] for i in batch]
            logits = logits_of(model or self.edited.model, self.inputs(chosen))
            answered, targets = answer_logits(chosen, logits)
            verdict = verdict_of(answered, targets, self.tie)
            sizes = [len(encoding.targets) for encoding in chosen]
            for i, right, close in zip(
                batch, verdict.right.split(sizes), verdict.close.split(sizes), strict=True
            ):
                is_close = bool(close.any())
                outcomes[i] = (
                    self.judge_alone(encodings[i], model) if is_close else bool(right.all())
                )
        return [outcomes[i] for i in range(len(encodings))]

    @torch.no_grad()
    def judge_alone(self, encoding: Encoding, model: Any = None) -> bool:
        """Whether one probe is right, by a pass over it alone: what decides a close one."""
        logits = logits_of(model or self.edited.model, self.inputs([encoding]))
        answered, wanted = answer_logits([encoding], logits)
        return bool((answered.argmax(-1) == wanted).all())

    @torch.no_grad()
    def greedily(self, encoding: Encoding, model: Any = None) -> tuple[int, ...]:
        """What the model says in the place of a probe's targets, without a stop; or another
        model."""
        said: tuple[int, ...] = ()
        for position in encoding.positions:
            asked = Encoding(encoding.question, (position,), (*said, encoding.targets[-1]))
            logits = logits_of(model or self.edited.model, self.inputs([asked]))
            answered, _ = answer_logits([asked], logits)
            said = (*said, int(answered[0].argmax()))
        return said


def answer_logits(encodings: Sequence[Encoding], logits: Tensor) -> tuple[Tensor, Tensor]:
    """The answer positions of a pass with logits [B, T, vocab], or [B, labels] where there is one
    answer for a whole input: [n, vocab or labels] float32, and the tokens wanted there [n]."""
    targets = torch.tensor([t for e in encodings for t in e.targets], device=logits.device)
    if logits.ndim == 2:
        return logits.float(), targets
    sequence, position = answer_places(encodings, logits.device)
    return logits[sequence, position].float(), targets


def length_sorted(
    encodings: Sequence[Encoding], tokens_max: int = PASS_TOKENS_MAX
) -> list[list[int]]:
    """Indices in batches of nearly one length, each of at most `tokens_max` padded tokens; the
    beginnings of one text stay together."""
    read, owners = sequences(encodings)
    members: list[list[int]] = [[] for _ in read]
    for index, owner in enumerate(owners):
        members[owner].append(index)
    batches = by_length([len(encoding) for encoding in read], tokens_max)
    return [[index for owner in batch for index in members[owner]] for batch in batches]
