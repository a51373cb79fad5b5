"""The losses of fine-tuning: the answers' likelihood, and the divergence of other answers.

    l   = l_e + kl_weight · (KL on training probes + KL on past edits)
    l_e = mean over the texts of the mean over an answer's tokens of -log p(token)
    KL  = mean over the inputs of the mean over an answer's tokens of KL(p_before ‖ p_now)

Answers are read teacher-forced, only at their own positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from continual.passes.partial import logits_of
from continual.task_model import TaskModel, answer_logits, length_sorted
from continual.tasks import Encoding
from continual.verdicts import verdict_of


@dataclass(frozen=True)
class FitStatus:
    """The model's present answers to some texts."""

    loss: Tensor  # l_e, differentiable
    right: tuple[bool, ...]  # of each text: every token is the arg-max by more than rounding


def fit_status(task_model: TaskModel, encodings: Sequence[Encoding]) -> FitStatus:
    """Run the texts, in passes of nearly one length."""
    losses: list[Tensor] = []
    verdicts: dict[int, bool] = {}
    for batch in length_sorted(encodings):
        group = [encodings[i] for i in batch]
        logits, targets = answer_logits(
            group, logits_of(task_model.edited.model, task_model.inputs(group))
        )
        nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        losses.append((nll * _shares(group, logits)).sum())
        verdict = verdict_of(logits.detach(), targets, task_model.tie)
        sure = (verdict.right & ~verdict.close).split([len(e.targets) for e in group])
        verdicts.update({i: bool(of_text.all()) for i, of_text in zip(batch, sure, strict=True)})
    loss = torch.stack(losses).sum() / len(encodings)
    return FitStatus(loss, tuple(verdicts[i] for i in range(len(encodings))))


def _shares(encodings: Sequence[Encoding], like: Tensor) -> Tensor:
    """Return the weight [n] of each token among the answer tokens of its text."""
    shares = [1.0 / len(e.targets) for e in encodings for _ in e.targets]
    return like.new_tensor(shares)


@dataclass(frozen=True)
class Anchors:
    """Inputs, with the log-probabilities of their answers at an earlier time."""

    encodings: tuple[Encoding, ...]
    log_probs: tuple[Tensor, ...]  # of each [tokens, vocab or labels] float32

    def __len__(self) -> int:
        return len(self.encodings)

    def __getitem__(self, places: Sequence[int]) -> Anchors:
        return Anchors(
            tuple(self.encodings[i] for i in places), tuple(self.log_probs[i] for i in places)
        )

    def drawn(self, count: int, generator: Generator) -> Anchors:
        """Draw at most `count` of them."""
        if len(self) <= count:
            return self
        return self[torch.randperm(len(self), generator=generator)[:count].tolist()]


@torch.no_grad()
def anchored(task_model: TaskModel, encodings: Sequence[Encoding]) -> Anchors:
    """Read the model's present answers to the inputs; the same inputs in the same order give the
    same bits."""
    read = partial(_log_probs, task_model)
    return Anchors(tuple(encodings), tuple(task_model.in_passes(read, encodings)))


@torch.no_grad()
def _log_probs(task_model: TaskModel, encodings: Sequence[Encoding]) -> tuple[Tensor, ...]:
    """Return log p [tokens, vocab or labels] of each input of one pass."""
    inputs = task_model.inputs(encodings)
    logits, _ = answer_logits(encodings, logits_of(task_model.edited.model, inputs))
    parts: tuple[Tensor, ...] = logits.log_softmax(-1).split([len(e.targets) for e in encodings])
    return parts


def divergence(task_model: TaskModel, anchors: Anchors) -> Tensor:
    """Return KL(p_before ‖ p_now) over the anchors, differentiable."""
    losses: list[Tensor] = []
    for batch in length_sorted(anchors.encodings):
        group = anchors[batch]
        inputs = task_model.inputs(group.encodings)
        logits, _ = answer_logits(group.encodings, logits_of(task_model.edited.model, inputs))
        reference, log_probs = torch.cat(group.log_probs), logits.log_softmax(-1)
        divergences = torch.nn.functional.kl_div(
            log_probs, reference, reduction="none", log_target=True
        ).sum(-1)
        losses.append((divergences * _shares(group.encodings, logits)).sum())
    return torch.stack(losses).sum() / len(anchors)


@dataclass(frozen=True)
class Restraint:
    """The KL terms of one edit. Each call draws the inputs of one step."""

    task_model: TaskModel
    groups: tuple[Anchors, ...]
    weight: float
    batch: int  # of each group, at most
    generator: Generator

    def __call__(self) -> Tensor | None:
        """Return kl_weight times the sum of the terms; None if all groups are empty."""
        samples = [group.drawn(self.batch, self.generator) for group in self.groups if len(group)]
        if not samples:
            return None
        return (
            self.weight
            * torch.stack([divergence(self.task_model, sample) for sample in samples]).sum()
        )
