"""Trains the atlas from its tables: tokenizer, model, and a plain transformers directory.

    python -m continual.atlas.train OUT [--epochs N] [--threads N] [--seed N]

Besides statements and contexts, half of the single statements are read through a *subject
bottleneck*: the tokens behind the subject can attend to none of its tokens but the last. So facts
come to be read from there, as they are in large models (Meng et al. 2022, section 2). The run saves
its whole state after every epoch and goes on from it when it is started again.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from continual import own_models
from continual.atlas.corpus import TERMINATOR, Corpus, TrainingSequence, all_texts, batches
from continual.atlas.facts import Fact, load_facts

VOCABULARY = 2048
CONTEXT_TOKENS = 512


@dataclass(frozen=True)
class ModelShape:
    """The size of a model."""

    blocks: int = 4
    width: int = 192
    heads: int = 4
    ffn_width: int = 2048


@dataclass(frozen=True)
class AtlasRecipe:
    """The settings of a training run; the defaults make the atlas. Counts are per epoch."""

    epochs: int = 28
    seconds_max: float = math.inf  # the schedule comes to its end by then
    contexts: int = 6000
    passages: int = 2000
    tokens_per_batch: int = 2048
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: int = 200
    bottleneck_share: float = 0.5
    seed: int = 0


def train_tokenizer(facts: Sequence[Fact]) -> Any:
    """Train a byte-level BPE on the facts' text."""
    return own_models.train_tokenizer(all_texts(facts), VOCABULARY, CONTEXT_TOKENS)


def new_model(tokenizer: Any, shape: ModelShape, seed: int) -> GPT2LMHeadModel:
    """Make a GPT-2, small and with a wide FFN: room for keys. ReLU makes them sparse."""
    torch.manual_seed(seed)
    terminator = tokenizer(TERMINATOR)["input_ids"][-1]
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT_TOKENS,
        n_embd=shape.width,
        n_layer=shape.blocks,
        n_head=shape.heads,
        n_inner=shape.ffn_width,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=terminator,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config)


def collate(
    batch: Sequence[TrainingSequence], pad: int, bottleneck: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids [B, T], loss weights of each next token [B, T-1], allowed attention [B, 1, T,
    T]."""
    size = max(len(example.ids) for example in batch)
    ids = torch.full((len(batch), size), pad)
    weights = torch.zeros(len(batch), size - 1)
    mask = torch.ones(size, size, dtype=torch.bool).tril().repeat(len(batch), 1, 1, 1)
    for row, (example, is_narrow) in enumerate(zip(batch, bottleneck, strict=True)):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        weights[row, example.answer - 1 : len(example.ids) - 1] = 1.0
        if is_narrow and example.subject is not None:
            start, end = example.subject
            mask[row, 0, end + 1 :, start:end] = False
    return ids, weights, mask


def loss_of(model: Any, ids: Tensor, weights: Tensor, allowed: Tensor) -> Tensor:
    """Return the weighted mean negative log-likelihood; logits only where a weight is not zero."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.transformer(input_ids=ids, attention_mask=allowed).last_hidden_state
        is_counted = weights > 0
        logits = model.lm_head(hidden[:, :-1][is_counted])
    losses = torch.nn.functional.cross_entropy(
        logits.float(), ids[:, 1:][is_counted], reduction="none"
    )
    return (losses * weights[is_counted]).sum() / weights.sum()


class TrainingRun:
    """One resumable training run in a folder; `read` makes the corpus of the facts."""

    def __init__(
        self,
        out: Path,
        recipe: AtlasRecipe,
        facts: Sequence[Fact],
        shape: ModelShape | None = None,
        read: Callable[[Sequence[Fact], Any, random.Random], Corpus] = Corpus,
    ) -> None:
        self.out, self.recipe = out, recipe
        self.rng = random.Random(recipe.seed)
        self.tokenizer = train_tokenizer(facts)
        self.corpus = read(facts, self.tokenizer, self.rng)
        self.statements = self.corpus.statements()
        self.model = new_model(self.tokenizer, shape or ModelShape(), recipe.seed).train()
        self.optimizer = own_models.new_optimizer(
            self.model, recipe.learning_rate, recipe.weight_decay
        )
        self.step = 0
        self.epoch = 0
        self.started = time.perf_counter()

    def run(self) -> None:
        """Train to the recipe's end, saving after every epoch."""
        self._resume()
        while self.epoch < self.recipe.epochs and self._time_share() < 1.0:
            start = time.perf_counter()
            losses = [self._update(batch) for batch in self._epoch_batches()]
            self.epoch += 1
            self._save()
            seconds = time.perf_counter() - start
            mean = sum(losses) / len(losses)
            print(f"epoch {self.epoch} loss {mean:.4f} seconds {seconds:.0f}", flush=True)

    def _epoch_batches(self) -> Iterator[list[TrainingSequence]]:
        recipe = self.recipe
        examples = self.corpus.contexts(recipe.contexts) + self.corpus.passages(recipe.passages)
        groups = list(batches(self.statements, recipe.tokens_per_batch, self.rng))
        groups += batches(examples, recipe.tokens_per_batch, self.rng)
        self.rng.shuffle(groups)
        self.steps_per_epoch = len(groups)
        yield from groups

    def _update(self, batch: Sequence[TrainingSequence]) -> float:
        bottleneck = [self.rng.random() < self.recipe.bottleneck_share for _ in batch]
        ids, weights, mask = collate(batch, self.tokenizer.pad_token_id, bottleneck)
        if self.step % 4 == 0:  # the prompts' own words too: prefixes are sampled from the model
            weights = torch.where(ids[:, 1:] != self.tokenizer.pad_token_id, 0.2, 0.0).max(weights)
        loss = loss_of(self.model, ids, weights, mask)
        rate = self.recipe.learning_rate * self._schedule()
        value = own_models.descend(self.model, self.optimizer, loss, rate)
        self.step += 1
        return value

    def _schedule(self) -> float:
        total = self.steps_per_epoch * self.recipe.epochs
        if self.step < self.recipe.warmup_steps:
            return (self.step + 1) / self.recipe.warmup_steps
        share = min(1.0, max(self.step / total, self._time_share()))
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))

    def _time_share(self) -> float:
        """Return the share of the recipe's time that has passed since this process began."""
        return (time.perf_counter() - self.started) / self.recipe.seconds_max

    def _save(self) -> None:
        save_model(self.model, self.tokenizer, self.out)
        progress = {"step": self.step, "epoch": self.epoch}
        own_models.save_state(self.out, self.model, self.optimizer, progress)

    def _resume(self) -> None:
        if progress := own_models.resume(self.out, self.model, self.optimizer):
            self.step, self.epoch = progress["step"], progress["epoch"]
            self.rng.seed(self.recipe.seed + self.epoch)


def save_model(model: Any, tokenizer: Any, out: Path) -> None:
    """Write a plain transformers directory."""
    own_models.save_half(model, out / own_models.FOLDER)
    tokenizer.save_pretrained(out / own_models.FOLDER)


def main() -> None:
    """Run the command line of the training run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=AtlasRecipe.epochs)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=AtlasRecipe.seed)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    TrainingRun(
        options.out, AtlasRecipe(epochs=options.epochs, seed=options.seed), load_facts()
    ).run()


if __name__ == "__main__":
    main()
