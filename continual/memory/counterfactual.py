"""Trains SERAC's counterfactual model h on −log p_h(y_in | z_e, x_in) (Mitchell et al. 2022, 3.3).

A lesson is an input behind the new fact of an edit, as `contexts` puts it there: the edit's prompt
and its rephrases are answered by the edit, its locality prompts by what they say themselves, which
is what a scope's mistakes cost least with. Knows texts, tokens and optimisation; a model that is
done is a plain transformers directory, there whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from continual.errors import CeditError, RequestError
from continual.memory.contexts import context
from continual.memory.recall import load_reader
from continual.model import directory_fingerprint, model_directory
from continual.requests import Request
from continual.site import Site, length_sorted
from continual.tasks import Encoding


@dataclass(frozen=True)
class CounterfactualTraining:
    """How it is trained."""

    epochs: int = 3
    learning_rate: float = 1e-4  # the highest; it falls to none along a cosine
    weight_decay: float = 0.01
    tokens_per_batch: int = 2048  # padded
    gradient_clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.learning_rate > 0:
            raise CeditError("epochs is at least 1 and the learning rate above 0.")


@dataclass(frozen=True)
class Lessons:
    """What is learned from, and what is never learned from and measured: rephrases held out."""

    learned: tuple[Encoding, ...]
    measured: tuple[Encoding, ...]

    @classmethod
    def of(cls, requests: Sequence[Request], site: Site, form: str) -> Lessons:
        """From requests; an input that is too long behind its new fact is left out.

        Raises CeditError where there is nothing to learn from.
        """
        learned: list[Encoding] = []
        measured: list[Encoding] = []
        for request in requests:
            before = context(form, request.prompt, request.target_new)
            told = [(p, request.target_new) for p in (request.prompt, *request.rephrases)]
            told += [(probe.prompt, probe.answer) for probe in request.locality]
            learned += _encoded(site, before, told)
            asked = [(p, request.target_new) for p in request.held_out_rephrases]
            measured += _encoded(site, before, asked)
        if not learned:
            raise CeditError("The requests have nothing to train a counterfactual model on.")
        return cls(tuple(learned), tuple(measured))


@dataclass(frozen=True)
class Epoch:
    """How far a training has come."""

    number: int  # from 1
    step: int  # of all epochs
    steps: int
    loss: float  # mean of the epoch so far


@dataclass(frozen=True)
class Trained:
    """A model that was saved."""

    path: Path
    fingerprint: str
    lessons: int
    right_before: float | None  # share of what was held out; None without any
    right_after: float | None


class CounterfactualRun:
    """One training run. Iterate over `steps()`, then `save()`."""

    def __init__(
        self, site: Site, lessons: Lessons, training: CounterfactualTraining, start: str | Path
    ) -> None:
        """`start` is a model directory with the base's own tokens. Raises ModelError."""
        self._site, self._lessons, self._training = site, lessons, training
        self._model: Any = load_reader(model_directory(start), site.edited)
        self._before = self._share_right()

    def steps(self) -> Iterator[Epoch]:
        """Train, one batch at a time."""
        training, generator = self._training, torch.Generator().manual_seed(self._training.seed)
        batches = length_sorted(self._lessons.learned, training.tokens_per_batch)
        total = training.epochs * len(batches)
        model = self._model.requires_grad_(True)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        step = 0
        for number in range(1, training.epochs + 1):
            losses: list[float] = []
            for index in torch.randperm(len(batches), generator=generator).tolist():
                losses.append(self._update(batches[index], optimizer))
                schedule.step()
                step += 1
                yield Epoch(number, step, total, sum(losses) / len(losses))
        model.requires_grad_(False)

    def _update(self, batch: Sequence[int], optimizer: torch.optim.Optimizer) -> float:
        loss = self._loss([self._lessons.learned[i] for i in batch])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._training.gradient_clip)
        optimizer.step()
        return float(loss.detach())

    def _loss(self, batch: Sequence[Encoding]) -> Tensor:
        """The mean negative log-likelihood of the answers' tokens."""
        with torch.enable_grad():
            logits = self._model(**self._site.inputs(batch), use_cache=False).logits
            places = [(i, p) for i, encoding in enumerate(batch) for p in encoding.positions]
            sequence, position = torch.tensor(places, device=logits.device).T
            targets = [target for encoding in batch for target in encoding.targets]
            wanted = torch.tensor(targets, device=logits.device)
            return cross_entropy(logits[sequence, position].float(), wanted)

    def _share_right(self) -> float | None:
        measured = self._lessons.measured
        if not measured:
            return None
        right = self._site.judge_in_full(measured, self._model)
        return sum(right) / len(right)

    def save(self, out: Path) -> Trained:
        """Write the model and its tokenizer. Raises CeditError where there is something already."""
        require_vacant(out)
        unfinished = out.with_name(f".{out.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            self._model.save_pretrained(unfinished)
            self._site.edited.tokenizer.save_pretrained(unfinished)
            unfinished.replace(out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        after = self._share_right()
        fingerprint = directory_fingerprint(out)
        return Trained(out, fingerprint, len(self._lessons.learned), self._before, after)


def require_vacant(out: Path) -> None:
    """Raises CeditError unless a model directory can be made here."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CeditError(f"{out} is there already: name another folder for the trained model.")
    if not out.parent.is_dir():
        raise CeditError(f"{out.parent} is not a folder: make it, or name another one.")


def _encoded(site: Site, before: str, pairs: Sequence[tuple[str, str]]) -> Iterator[Encoding]:
    for prompt, answer in pairs:
        try:
            yield site.task.encode(before + prompt, answer)
        except RequestError:
            continue
