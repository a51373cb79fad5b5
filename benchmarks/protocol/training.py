"""Trains a new model on pairs of a text and its answer, and keeps it under a digest of its
training.

Knows how pairs become batches, the objective and the schedule, and the place of a trained model. A
model is a plain transformers directory; its folder's name is a digest of the pairs, the recipe, the
shape and the seed.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import tables
from benchmarks.protocol.networks import ARCHITECTURES, Architecture
from continual.model_files import directory_fingerprint

TextAnswer = tuple[str, str]  # a text and its answer
UNCOUNTED = -100  # the label of a position that has no loss


@dataclass(frozen=True)
class TrainingRecipe:
    """The settings of a training run."""

    epochs: int
    seconds_max: float = math.inf  # the schedule ends by then
    tokens_per_batch: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 400
    seed: int = 0


def trained_model(
    architecture: str,
    pairs: Sequence[TextAnswer],
    recipe: TrainingRecipe,
    cache: Path,
    watch: Callable[[Any, Any], str] | None = None,
    start: Path | None = None,
) -> Path:
    """Return the directory of a model trained on these pairs: from the cache, or trained now.

    `watch` gets the model and the tokenizer after every tenth epoch and reports how well it does.
    `start` is a pretrained model to train on, in the place of a new one.
    """
    directory = cache / f"protocol-{architecture}-{digest(architecture, pairs, recipe, start)}"
    if not directory.exists():
        unfinished = directory.with_suffix(".training")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        training = NetworkTraining(ARCHITECTURES[architecture], pairs, recipe, start)
        training.run(watch)
        training.model.eval().save_pretrained(unfinished)
        training.tokenizer.save_pretrained(unfinished)
        unfinished.rename(directory)
    return directory


def digest(
    architecture: str,
    pairs: Sequence[TextAnswer],
    recipe: TrainingRecipe,
    start: Path | None = None,
) -> str:
    """Return the name of a model: a digest of its training data and recipe."""
    content: dict[str, Any] = {
        "shape": asdict(ARCHITECTURES[architecture].shape),
        "pairs": list(pairs),
        "recipe": {name: str(value) for name, value in asdict(recipe).items()},
    }
    if start is not None:
        content["start"] = directory_fingerprint(start)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Encoded:
    """A pair as tokens; the answer is one number if it is a label."""

    text: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.text) + len(self.answer)


class NetworkTraining:
    """One training run."""

    def __init__(
        self,
        architecture: Architecture,
        pairs: Sequence[TextAnswer],
        recipe: TrainingRecipe,
        start: Path | None = None,
    ) -> None:
        self.recipe = recipe
        self.rng = random.Random(recipe.seed)
        answers = [answer for _, answer in pairs]
        if start is None:
            texts = (text for pair in pairs for text in (pair[:1] if architecture.labels else pair))
            self.tokenizer, self.model = architecture.new(texts, answers, recipe.seed)
        else:
            self.tokenizer, self.model = architecture.pretrained(start, answers, recipe.seed)
        self.model.train()
        self.labels = self.model.config.label2id if architecture.labels else None
        self.examples = [self._encoded(text, answer) for text, answer in pairs]
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.step = 0
        self.started = time.perf_counter()

    def run(self, watch: Callable[[Any, Any], str] | None = None) -> None:
        """Train to the recipe's end."""
        for epoch in range(1, self.recipe.epochs + 1):
            if self._time_share() >= 1.0:
                break
            batches = list(self._batches())
            losses = [self._update(batch, len(batches)) for batch in batches]
            mean = sum(losses) / len(losses)
            seconds = time.perf_counter() - self.started
            tables.note(f"epoch {epoch}: loss {mean:.4f} after {seconds:.0f} s")
            if watch and epoch % 10 == 0:
                tables.note(watch(self.model.eval(), self.tokenizer))
                self.model.train()

    def _encoded(self, text: str, answer: str) -> Encoded:
        ids = tuple(self.tokenizer(text)["input_ids"])
        if self.labels is not None:
            return Encoded(ids, (self.labels[answer],))
        return Encoded(ids, tuple(self.tokenizer(text_target=answer)["input_ids"]))

    def _batches(self) -> Iterator[list[Encoded]]:
        """Yield all examples once, in random batches of nearly one length."""
        order = sorted(self.examples, key=lambda e: (len(e.text), self.rng.random()))
        found: list[list[Encoded]] = [[]]
        for example in order:
            if found[-1] and len(example) * (len(found[-1]) + 1) > self.recipe.tokens_per_batch:
                found.append([])
            found[-1].append(example)
        self.rng.shuffle(found)
        yield from found

    def _update(self, batch: Sequence[Encoded], steps_per_epoch: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * self._schedule(steps_per_epoch)
        loss = self.model(**self._inputs(batch)).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    def _inputs(self, batch: Sequence[Encoded]) -> dict[str, Tensor]:
        ids = _padded([example.text for example in batch], self.tokenizer.pad_token_id)
        inputs = {"input_ids": ids, "attention_mask": (ids != self.tokenizer.pad_token_id).long()}
        answers = _padded([example.answer for example in batch], UNCOUNTED)
        return {**inputs, "labels": answers if self.labels is None else answers[:, 0]}

    def _schedule(self, steps_per_epoch: int) -> float:
        if self.step < self.recipe.warmup_steps:
            return (self.step + 1) / self.recipe.warmup_steps
        share = max(self.step / (steps_per_epoch * self.recipe.epochs), self._time_share())
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def _time_share(self) -> float:
        """Return the share of the recipe's time that has passed."""
        return (time.perf_counter() - self.started) / self.recipe.seconds_max


def _padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Return rows as [B, T], padded on the right."""
    padded = torch.full((len(rows), max(map(len, rows))), pad)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return padded


# --- how well a model answers ---------------------------------------------------------------------


@torch.no_grad()
def accuracy(
    model: Any, tokenizer: Any, pairs: Sequence[TextAnswer], batch_size: int = 128
) -> float:
    """Return the share of texts answered rightly: by the label, or by every token and the end."""
    labels = model.config.label2id if not model.config.is_encoder_decoder else None
    right = 0
    for first in range(0, len(pairs), batch_size):
        batch = pairs[first : first + batch_size]
        texts = tokenizer([text for text, _ in batch], padding=True, return_tensors="pt")
        inputs = {name: texts[name] for name in ("input_ids", "attention_mask")}
        if labels is not None:
            wanted = torch.tensor([labels[answer] for _, answer in batch])
            right += int((model(**inputs).logits.argmax(-1) == wanted).sum())
            continue
        answers = [tokenizer(text_target=answer)["input_ids"] for _, answer in batch]
        wanted = _padded(answers, UNCOUNTED)
        found = model(**inputs, labels=wanted).logits.argmax(-1)
        right += int(((found == wanted) | (wanted == UNCOUNTED)).all(1).sum())
    return right / len(pairs)
