"""Decodes with gates on: by `generate` with a cache or without, by hand, and by the engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from continual.model import EditedModel
from continual.passes.partial import logits_of
from continual.patches import Patch
from continual.watch.writing import continued
from tests.tiny_models import VOCAB

PROMPTS = (3, 5)  # tokens; the shorter one is padded on the left
WRITTEN = 8


@dataclass(frozen=True)
class Decoded:
    """The texts that a model writes behind two prompts."""

    bare: Tensor  # before the patch is on
    found: Tensor  # by `generate` as it is
    uncached: Tensor  # by transformers' `generate`, without a cache
    by_hand: Tensor  # the longer one, by plain passes over whole texts
    written: tuple[int, ...]  # the longer one's new tokens, by the engine


def decoded(model: EditedModel, patch: Patch, beams: int) -> Decoded:
    """Decode with a patch on the model, in every way."""
    generator = torch.Generator().manual_seed(3)
    short, long = (torch.randint(4, VOCAB, (1, n), generator=generator) for n in PROMPTS)
    padded = torch.cat([torch.cat([torch.zeros(1, 2, dtype=torch.long), short], 1), long])
    mask = torch.ones_like(padded)
    mask[0, :2] = 0
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options |= {"max_new_tokens": WRITTEN, "attention_mask": mask, "num_beams": beams}
    with model:
        bare = model.generate(padded, **options)
        model.put([patch])
        found = model.generate(padded, **options)
        uncached = type(model.model).generate(model.model, padded, use_cache=False, **options)
        said = long
        for _ in range(WRITTEN):
            token = logits_of(model.model, {"input_ids": said})[:, -1].argmax(-1)
            said = torch.cat([said, token[:, None]], 1)
        texts = [tuple(ids[0].tolist()) for ids in (short, long)]
        written = continued(model, texts, WRITTEN)[1]
    return Decoded(bare, found, uncached, said, tuple(written))


def check(texts: Decoded, beams: int) -> None:
    """Every way says the same, and otherwise than without the patch."""
    assert not torch.equal(texts.found, texts.bare)
    assert torch.equal(texts.found, texts.uncached)
    said = texts.by_hand[0].tolist()
    if beams == 1:
        assert texts.found[1].tolist() == said
    new = tuple(said[PROMPTS[1] :])
    assert texts.written and texts.written == new[: len(texts.written)]
