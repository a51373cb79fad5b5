"""Trains the gallery's model: tokenizer, a small LLaVA, and a plain transformers directory.

    python -m continual.gallery.train OUT [--steps N] [--threads N] [--seed N]

The whole model is trained at once, on pictures and on texts in turn. The run saves its state every
few hundred steps and goes on from it when it is started again.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from continual.gallery import measure
from continual.gallery.corpus import (
    DEVIATION,
    MEAN,
    PATCH,
    PICTURE_TOKENS,
    TERMINATOR,
    Corpus,
    Example,
    all_texts,
    pixels,
)
from continual.gallery.drawing import SIZE
from continual.gallery.questions import IMAGE
from continual.gallery.scenes import Gallery

VOCABULARY = 1536
CONTEXT_TOKENS = 256
END = "<|endoftext|>"


@dataclass(frozen=True)
class GalleryRecipe:
    """The settings of a training run; the defaults make the gallery."""

    steps: int = 9000
    pictures: int = 64  # of a step
    texts: int = 96  # of every second step
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    warmup_steps: int = 300
    prompt_weight: float = 0.1  # of the loss on a prompt's own words, where 1 is the answer's
    saved_every: int = 250
    seed: int = 0


def train_tokenizer(gallery: Gallery) -> Any:
    """Train a byte-level BPE on the gallery's text, with a token for the places of a picture."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(all_texts(gallery), trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[IMAGE],
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


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
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.step = 0

    def run(self) -> None:
        """Train to the recipe's end, saving and measuring as it goes."""
        self._resume()
        corpus = Corpus(
            self.gallery, self.tokenizer, random.Random(f"{self.recipe.seed} {self.step}")
        )
        began, losses = time.perf_counter(), [0.0]
        while self.step < self.recipe.steps:
            is_text = self.step % 3 == 2
            batch = (
                corpus.texts(self.recipe.texts)
                if is_text
                else corpus.pictures(self.recipe.pictures)
            )
            losses.append(self._update(batch))
            if self.step % self.recipe.saved_every == 0:
                self._save()
                self._report(losses[-200:], time.perf_counter() - began)

    def _update(self, batch: Sequence[Example]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * self._schedule()
        loss = loss_of(self.model, batch, self.tokenizer.pad_token_id, self.recipe.prompt_weight)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    def _schedule(self) -> float:
        if self.step < self.recipe.warmup_steps:
            return (self.step + 1) / self.recipe.warmup_steps
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.step / self.recipe.steps))

    def _report(self, losses: Sequence[float], seconds: float) -> None:
        shares = measure.shares(self.model, self.tokenizer, self.gallery, count=96)
        self.model.train()
        said = "  ".join(f"{name} {share:.3f}" for name, share in shares.items())
        mean = sum(losses) / len(losses)
        print(f"step {self.step} loss {mean:.4f} seconds {seconds:.0f}  {said}", flush=True)

    def _save(self) -> None:
        save_model(self.model, self.tokenizer, self.out / "model")
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "recipe": asdict(self.recipe),
        }
        path = self.out / "training.tmp"
        torch.save(state, path)
        path.replace(self.out / "training.pt")

    def _resume(self) -> None:
        path = self.out / "training.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a plain transformers directory; half-precision weights keep it small."""
    half_model = type(model)(model.config)
    half_model.load_state_dict(model.state_dict())
    half_model.half().save_pretrained(folder)
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
