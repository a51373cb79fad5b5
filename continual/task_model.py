"""The edited model with its task: probes become inputs, are asked in passes, and are judged.

Knows whole forward passes, of the edited model or of another one, and the tail that makes logits of
the last block's residual sum. Leaves reading inside the model to `site` and `passes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from continual.anatomy import sample_inputs
from continual.errors import ModelError
from continual.execution import Executor, Result
from continual.execution.local import LOCAL
from continual.model import EditedModel
from continual.passes.batching import by_length
from continual.passes.edit_site import find_tail
from continual.passes.partial import logits_of
from continual.passes.row_tail import RowTail
from continual.pictures.album import album_of
from continual.tasks import Encoding, Task, answer_places, sequences
from continual.verdicts import tie_of, verdict_of

PASS_TOKENS_MAX = 4096
SAMPLE_TOKENS = 3  # of a pass that shows the number of logits
PASS_LOGITS_MAX = 2**28  # of a pass that shows the logits of all tokens


class TaskModel:
    """An edited model with its task's inputs and judging. Used within the model's `with` block."""

    def __init__(self, edited: EditedModel, task: Task, executor: Executor = LOCAL) -> None:
        """`executor` runs the passes over many probes."""
        self.edited = edited
        self.task = task
        self.executor = executor if album_of(task) is None else LOCAL  # pictures stay here
        self._tail: RowTail | None = None
        if not edited.anatomy.no_rows:
            with edited.up_to_last_sum():
                self._tail = find_tail(edited.model, edited.anatomy)

    @property
    def tail(self) -> RowTail:
        """The tail that makes logits of rows. Raises ModelError for a model that has none."""
        if self._tail is None:
            raise ModelError(self.edited.anatomy.no_rows)
        return self._tail

    @property
    def has_rows(self) -> bool:
        """True if the logits are computed from the model's last place, row by row; otherwise whole
        passes judge every probe."""
        return self._tail is not None

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
        """The number of logits of a row: tokens, or labels."""
        width, device = self.edited.anatomy.width, self.edited.device
        if self._tail is None:
            inputs = sample_inputs(self.edited.model, SAMPLE_TOKENS)
            return logits_of(self.edited.model, inputs).shape[-1]
        return self.tail(torch.zeros(1, width, dtype=self.dtype, device=device)).shape[-1]

    def inputs(self, encodings: Sequence[Encoding]) -> dict[str, Tensor]:
        """Make the model's inputs for a pass over these probes, on its device."""
        inputs = self.task.inputs(sequences(encodings)[0])
        return {name: tensor.to(self.edited.device) for name, tensor in inputs.items()}

    def in_passes(
        self,
        read: Callable[[list[Encoding]], Sequence[Result]],
        encodings: Sequence[Encoding],
        tokens_max: int = PASS_TOKENS_MAX,
    ) -> list[Result]:
        """Return the results of many probes, in their order. `read` is called with passes of nearly
        one length, of at most `tokens_max` padded tokens each, and returns a result for each probe
        of the pass."""
        batches = length_sorted(encodings, tokens_max)
        passes = self.executor.map(read, [[encodings[i] for i in batch] for batch in batches])
        results: dict[int, Result] = {}
        for batch, of_pass in zip(batches, passes, strict=True):
            results.update(zip(batch, of_pass, strict=True))
        return [results[i] for i in range(len(encodings))]

    def judge_in_full(
        self, encodings: Sequence[Encoding], model: Any = None, tie: float | None = None
    ) -> list[bool]:
        """Tell for each probe whether it is right, by forward passes of the whole edited model, or
        of another `model`; `tie` is of its number format if that is another one."""
        tokens_max = min(PASS_TOKENS_MAX, max(1, PASS_LOGITS_MAX // self.choices))
        return self.in_passes(partial(self._judged, model=model, tie=tie), encodings, tokens_max)

    @torch.no_grad()
    def _judged(self, encodings: Sequence[Encoding], model: Any, tie: float | None) -> list[bool]:
        """Tell for each probe of one pass whether it is right."""
        logits = logits_of(model or self.edited.model, self.inputs(encodings))
        answered, targets = answer_logits(encodings, logits)
        verdict = verdict_of(answered, targets, self.tie if tie is None else tie)
        sizes = [len(encoding.targets) for encoding in encodings]
        right, close = verdict.right.split(sizes), verdict.close.split(sizes)
        return [
            self.judge_alone(encoding, model) if bool(c.any()) else bool(r.all())
            for encoding, r, c in zip(encodings, right, close, strict=True)
        ]

    def leading_in_full(self, encodings: Sequence[Encoding]) -> tuple[Tensor, Tensor]:
        """Return [n] the tokens with the highest logit at all answer positions, and [n] bool:
        another logit is close. By forward passes of the whole edited model."""
        tokens_max = min(PASS_TOKENS_MAX, max(1, PASS_LOGITS_MAX // self.choices))
        results = self.in_passes(self._leading, encodings, tokens_max)
        leading, close = zip(*results, strict=True)
        return torch.cat(leading), torch.cat(close)

    @torch.no_grad()
    def _leading(self, encodings: Sequence[Encoding]) -> list[tuple[Tensor, Tensor]]:
        """Return the leading tokens of each probe of one pass, and whether another is close."""
        logits, _ = answer_logits(encodings, logits_of(self.edited.model, self.inputs(encodings)))
        leading = logits.argmax(-1)
        close = verdict_of(logits, leading, self.tie).close
        sizes = [len(encoding.targets) for encoding in encodings]
        return list(zip(leading.split(sizes), close.split(sizes), strict=True))

    @torch.no_grad()
    def judge_alone(self, encoding: Encoding, model: Any = None) -> bool:
        """Tell whether one probe is right, by a pass over it alone, which decides a close one."""
        logits = logits_of(model or self.edited.model, self.inputs([encoding]))
        answered, targets = answer_logits([encoding], logits)
        return bool((answered.argmax(-1) == targets).all())

    @torch.no_grad()
    def greedily(self, encoding: Encoding, model: Any = None) -> tuple[int, ...]:
        """Return greedy tokens in the place of a probe's targets, without a stop, by the edited
        model or another `model`."""
        answer: tuple[int, ...] = ()
        for position in encoding.positions:
            probe = Encoding(encoding.question, (position,), (*answer, encoding.targets[-1]))
            logits = logits_of(model or self.edited.model, self.inputs([probe]))
            answered, _ = answer_logits([probe], logits)
            answer = (*answer, int(answered[0].argmax()))
        return answer


def answer_logits(encodings: Sequence[Encoding], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Pick the answer positions out of a pass's logits [B, T, vocab], or [B, labels] if a whole
    input has one answer: [n, vocab or labels] float32, and the expected tokens [n]."""
    targets = torch.tensor([t for e in encodings for t in e.targets], device=logits.device)
    if logits.ndim == 2:
        return logits.float(), targets
    sequence, position = answer_places(encodings, logits.device)
    return logits[sequence, position].float(), targets


def length_sorted(
    encodings: Sequence[Encoding], tokens_max: int = PASS_TOKENS_MAX
) -> list[list[int]]:
    """Divide indices into batches of nearly one length, each of at most `tokens_max` padded tokens;
    the beginnings of one text stay together."""
    read, owners = sequences(encodings)
    members: list[list[int]] = [[] for _ in read]
    for index, owner in enumerate(owners):
        members[owner].append(index)
    batches = by_length([len(encoding) for encoding in read], tokens_max)
    return [[index for owner in batch for index in members[owner]] for batch in batches]
