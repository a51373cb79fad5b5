"""Asks the gallery's model: the share of questions that it answers exactly, by kind of test.

    python -m continual.gallery.measure MODEL [--count N]

An answer is exact when every token of it, with the end, is the likeliest one behind the tokens
before: free greedy decoding says the same.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from continual.gallery.corpus import Example, encoded, pixels
from continual.gallery.drawing import NEW_RENDERING, TRAINED_RENDERINGS, drawn
from continual.gallery.questions import Query, of_emblem, of_person, of_scene
from continual.gallery.scenes import Emblem, Gallery, Scene

BATCH = 48
SEED = 3


@torch.no_grad()
def exact(model: Any, batch: Sequence[Example], pad: int, *, is_blind: bool = False) -> list[bool]:
    """Tell for each example whether its answer is exact; blind: with a grey picture."""
    size = max(len(example.ids) for example in batch)
    ids = torch.full((len(batch), size), pad)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
    pictures = [example.picture for example in batch if example.picture is not None]
    seen = {"pixel_values": pixels(pictures)} if pictures else {}
    if is_blind:
        seen["pixel_values"].zero_()
    said = model(input_ids=ids, use_cache=False, **seen).logits.argmax(-1)
    return [
        said[row, e.answer - 1 : len(e.ids) - 1].tolist() == list(e.ids[e.answer :])
        for row, e in enumerate(batch)
    ]


def shares(model: Any, tokenizer: Any, gallery: Gallery, count: int) -> dict[str, float]:
    """Return the share of exact answers: of emblems and of scenes in trained wordings and trained
    renderings, then in wordings and renderings that were never trained, blind, and of texts."""
    model.eval()
    result = {}
    for name, group in _groups(tokenizer, gallery, count).items():
        is_blind = name == "blind"
        outcomes = [
            right
            for start in range(0, len(group), BATCH)
            for right in exact(
                model, group[start : start + BATCH], tokenizer.pad_token_id, is_blind=is_blind
            )
        ]
        result[name] = sum(outcomes) / len(outcomes)
    return result


def _groups(tokenizer: Any, gallery: Gallery, count: int) -> dict[str, list[Example]]:
    rng = random.Random(SEED)
    emblems = list(_of_emblems(gallery, rng, count))
    scenes = list(_of_scenes(gallery, rng, count))
    people = [rng.choice(of_person(rng.choice(gallery.people))) for _ in range(count)]

    def asked(
        pairs: Sequence[tuple[Emblem | Scene, Query]], renderings: Sequence[str], *, new: bool
    ) -> list[Example]:
        return [
            encoded(
                tokenizer,
                rng.choice(query.held_out if new else query.trained),
                query.answer,
                drawn(content, rng.choice(renderings), rng),
            )
            for content, query in pairs
        ]

    old, new = TRAINED_RENDERINGS, (NEW_RENDERING,)
    return {
        "emblems": asked(emblems, old, new=False),
        "scenes": asked(scenes, old, new=False),
        "new wordings": asked([*emblems, *scenes], old, new=True),
        "new renderings": asked([*emblems, *scenes], new, new=False),
        "blind": asked([*emblems, *scenes], old, new=False),
        "texts": [encoded(tokenizer, rng.choice(q.trained), q.answer, None) for q in people],
        "new wordings of texts": [
            encoded(tokenizer, rng.choice(q.held_out), q.answer, None) for q in people
        ],
    }


def _of_emblems(gallery: Gallery, rng: random.Random, count: int) -> Iterator[tuple[Emblem, Query]]:
    for _ in range(count):
        emblem = rng.choice(gallery.emblems)
        yield emblem, rng.choice(of_emblem(emblem))


def _of_scenes(gallery: Gallery, rng: random.Random, count: int) -> Iterator[tuple[Scene, Query]]:
    scenes = gallery.scenes("measured")
    for _ in range(count):
        scene = next(scenes)
        yield scene, rng.choice(list(of_scene(scene)))


def main() -> None:
    """Print the shares of a model in a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=600, metavar="N", help="of each group")
    options = parser.parse_args()
    model = hf.LlavaForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = hf.AutoTokenizer.from_pretrained(options.model)
    for name, share in shares(model, tokenizer, Gallery(), options.count).items():
        print(f"{name:24s} {share:.4f}")


if __name__ == "__main__":
    main()
