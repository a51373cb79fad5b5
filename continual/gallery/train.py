"""Trains the gallery's model: tokenizer, a small LLaVA, and a plain transformers directory.

    python -m continual.gallery.train OUT [--steps N] [--threads N] [--seed N]

First the eye is taught alone, on what can be seen, and stays so; then the rest is trained at once,
on pictures and on texts in turn. The run saves its state behind the eye and every few hundred
steps, and goes on from it when it is started again.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from continual import own_models
from continual.gallery import eye, measure
from continual.gallery.corpus import (
    DEVIATION,
    MEAN,
    PATCH,
    PICTURE_TOKENS,
    TERMINATOR,
    Corpus,
    Example,
    all_texts,
    mix_at,
    pixels,
)
from continual.gallery.drawing import SIZE
from continual.gallery.eye import EyeRecipe
from continual.gallery.questions import IMAGE
from continual.gallery.scenes import Gallery

VOCABULARY = 1536
CONTEXT_TOKENS = 256


@dataclass(frozen=True)
class GalleryRecipe:
    """The settings of a training run; the defaults make the gallery."""

    steps: int = 5000
    pictures: int = 64  # of a batch
    texts: int = 96  # of a batch: every third one
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    warmup_steps: int = 300
    prompt_weight: float = 0.1  # of the loss on a prompt's own words, where 1 is the answer's
    saved_every: int = 250
    measured: int = 96  # examples of each kind of test, whenever it is saved
    seed: int = 0
    eye: EyeRecipe = field(default_factory=EyeRecipe)


def train_tokenizer(gallery: Gallery) -> Any:
    """Train a byte-level BPE on the gallery's text, with a token for the places of a picture."""
    return own_models.train_tokenizer(all_texts(gallery), VOCABULARY, CONTEXT_TOKENS, [IMAGE])


def new_model(tokenizer: Any, seed: int) -> Any:
    """Make a LLaVA: a CLIP of three blocks, two layers between, and a Llama of four blocks."""
    torch.manual_seed(seed)
    vision = hf.CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
    )
    text = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer(TERMINATOR)["input_ids"][-1],
        pad_token_id=tokenizer.pad_token_id,
    )
    config = hf.LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=PICTURE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    return hf.LlavaForConditionalGeneration(config)


def new_processor(tokenizer: Any) -> Any:
    """Make the processor that belongs to the model."""
    pictures = hf.CLIPImageProcessor(
        size={"height": SIZE, "width": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        do_resize=True,
        do_rescale=True,
        do_normalize=True,
        do_convert_rgb=True,
        image_mean=[MEAN] * 3,
        image_std=[DEVIATION] * 3,
    )
    return hf.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
    )


def loss_of(model: Any, batch: Sequence[Example], pad: int, prompt_weight: float) -> Tensor:
    """Return the weighted mean negative log-likelihood of the batch's answers and prompts."""
    size = max(len(example.ids) for example in batch)
    ids = torch.full((len(batch), size), pad)
    weights = torch.zeros(len(batch), size - 1)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        first = 0 if example.picture is None else PICTURE_TOKENS
        weights[row, first : example.answer - 1] = prompt_weight
        weights[row, example.answer - 1 : len(example.ids) - 1] = 1.0
    pictures = [example.picture for example in batch if example.picture is not None]
    seen = {"pixel_values": pixels(pictures)} if pictures else {}
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False, **seen).last_hidden_state
        is_counted = weights > 0
        logits = model.lm_head(hidden[:, :-1][is_counted])
    losses = torch.nn.functional.cross_entropy(
        logits.float(), ids[:, 1:][is_counted], reduction="none"
    )
    return (losses * weights[is_counted]).sum() / weights.sum()


class TrainingRun:
    """One resumable training run in a folder."""

    def __init__(self, out: Path, recipe: GalleryRecipe) -> None:
        self.out, self.recipe = out, recipe
        self.gallery = Gallery()
        self.tokenizer = train_tokenizer(self.gallery)
        self.model = new_model(self.tokenizer, recipe.seed).train()
        self.optimizer = own_models.new_optimizer(
            self.model, recipe.learning_rate, recipe.weight_decay
        )
        self.step = 0

    def run(self) -> None:
        """Train to the recipe's end, saving and measuring as it goes."""
        if not self._resume():
            eye.teach(
                self.model.model.vision_tower, self.gallery, self.recipe.eye, self.recipe.seed
            )
            self._save()
        self.model.model.vision_tower.requires_grad_(False)
        corpus = Corpus(
            self.gallery, self.tokenizer, random.Random(f"{self.recipe.seed} {self.step}")
        )
        pictures = corpus.pictures(self.recipe.pictures)
        texts = corpus.texts(self.recipe.texts)
        began, losses = time.perf_counter(), [0.0]
        while self.step < self.recipe.steps:
            corpus.mix = mix_at(self.step)
            batch = next(texts if self.step % 3 == 2 else pictures)
            losses.append(self._update(batch))
            if self.step % self.recipe.saved_every == 0 or self.step == self.recipe.steps:
                self._save()
                self._report(losses[-200:], time.perf_counter() - began)

    def _update(self, batch: Sequence[Example]) -> float:
        loss = loss_of(self.model, batch, self.tokenizer.pad_token_id, self.recipe.prompt_weight)
        rate = self.recipe.learning_rate * self._schedule()
        value = own_models.descend(self.model, self.optimizer, loss, rate)
        self.step += 1
        return value

    def _schedule(self) -> float:
        return own_models.schedule(self.step, self.recipe.steps, self.recipe.warmup_steps)

    def _report(self, losses: Sequence[float], seconds: float) -> None:
        shares = measure.shares(self.model, self.tokenizer, self.gallery, self.recipe.measured)
        self.model.train()
        said = "  ".join(f"{name} {share:.3f}" for name, share in shares.items())
        mean = sum(losses) / len(losses)
        print(f"step {self.step} loss {mean:.4f} seconds {seconds:.0f}  {said}", flush=True)

    def _save(self) -> None:
        save_model(self.model, self.tokenizer, self.out / own_models.FOLDER)
        progress = {"step": self.step, "recipe": asdict(self.recipe)}
        own_models.save_state(self.out, self.model, self.optimizer, progress)

    def _resume(self) -> bool:
        """Go on from a saved state; tell whether there was one."""
        progress = own_models.resume(self.out, self.model, self.optimizer)
        self.step = progress.get("step", 0)
        return bool(progress)


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a plain transformers directory, with the processor."""
    own_models.save_half(model, folder)
    new_processor(tokenizer).save_pretrained(folder)


def main() -> None:
    """Run the command line of the training run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=GalleryRecipe.steps)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=GalleryRecipe.seed)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    TrainingRun(options.out, GalleryRecipe(steps=options.steps, seed=options.seed)).run()


if __name__ == "__main__":
    main()
