"""Teaches the gallery's eye to see before it learns to speak, as a LLaVA's CLIP was trained before.

The vision tower reads looks: which thing stands at each place of a scene, and the four traits of an
emblem, each by a linear reading of its patches. The readings are thrown away; the tower stays.
The emblems' looks are drawn from all but those of the new emblems; no name is told.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from continual import own_models
from continual.gallery.corpus import PATCH, pixels
from continual.gallery.drawing import NEW_RENDERING, SIZE, TRAINED_RENDERINGS, drawn
from continual.gallery.scenes import (
    CHARGES,
    COLOURS,
    OUTLINES,
    PLACES,
    SHAPES,
    Emblem,
    Gallery,
    Scene,
)

SIDE = SIZE // PATCH  # patches along a side
THINGS = (*SHAPES, "nothing")
TRAITS = {"outline": OUTLINES, "field": COLOURS, "charge": CHARGES, "tint": COLOURS}
SEEN = tuple(name for place in PLACES for name in (f"shape {place}", f"colour {place}"))
UNSEEN = -100  # of what a picture has not: cross_entropy leaves it out


@dataclass(frozen=True)
class EyeRecipe:
    """The settings of the eye's training; the defaults make the gallery's."""

    steps: int = 4000
    pictures: int = 128  # of a step
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup_steps: int = 200
    told_every: int = 500
    measured: int = 512  # pictures


class Reading(nn.Module):
    """Reads looks from the patches of a vision tower."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape, self.colour = nn.Linear(width, len(THINGS)), nn.Linear(width, len(COLOURS))
        self.traits = nn.ModuleList(nn.Linear(width, len(kinds)) for kinds in TRAITS.values())

    def forward(self, patches: Tensor) -> list[Tensor]:
        """Return the logits [n, kinds] of each part of a look, of [n, patches, width]: shape and
        colour of each place, and the traits of an emblem."""
        count, _, width = patches.shape
        half = SIDE // 2
        blocks = patches.reshape(count, 2, half, 2, half, width).mean(dim=(2, 4))
        read = [
            head(blocks[:, row, column])
            for row in range(2)
            for column in range(2)
            for head in (self.shape, self.colour)
        ]
        whole = patches.mean(1)
        return read + [head(whole) for head in self.traits]


def look_of(content: Emblem | Scene) -> list[int]:
    """Return the numbers of what can be seen, in the order of the readings."""
    if isinstance(content, Emblem):
        traits = [kinds.index(getattr(content, name)) for name, kinds in TRAITS.items()]
        return [UNSEEN] * len(SEEN) + traits
    numbers: list[int] = []
    for place in PLACES:
        thing = content.things.get(place)
        numbers.append(THINGS.index("nothing" if thing is None else thing.shape))
        numbers.append(UNSEEN if thing is None else COLOURS.index(thing.colour))
    return numbers + [UNSEEN] * len(TRAITS)


def teach(vision: Any, gallery: Gallery, recipe: EyeRecipe, seed: int) -> None:
    """Train a vision tower in place; print the share of pictures that it reads rightly as it goes,
    and of those in the rendering that is never trained."""
    torch.manual_seed(seed)
    reading = Reading(vision.config.hidden_size)
    both = nn.ModuleList([vision, reading])
    optimizer = own_models.new_optimizer(both, recipe.learning_rate, recipe.weight_decay)
    draw = random.Random(f"{seed} eye")
    contents = _contents(gallery, draw)
    both.train()
    for step in range(recipe.steps):
        batch = [next(contents) for _ in range(recipe.pictures)]
        loss = _loss(*_read(vision, reading, batch, TRAINED_RENDERINGS, draw))
        share = own_models.schedule(step, recipe.steps, recipe.warmup_steps)
        own_models.descend(both, optimizer, loss, recipe.learning_rate * share)
        if (step + 1) % recipe.told_every == 0:
            fresh = [next(contents) for _ in range(recipe.measured)]
            with torch.no_grad():
                seen, tilted = (
                    _share_right(*_read(vision, reading, fresh, renderings, draw))
                    for renderings in (TRAINED_RENDERINGS, (NEW_RENDERING,))
                )
            told = (
                f"loss {float(loss.detach()):.4f}  right {seen:.3f}  {NEW_RENDERING} {tilted:.3f}"
            )
            print(f"eye: step {step + 1} {told}", flush=True)


def _contents(gallery: Gallery, draw: random.Random) -> Iterator[Emblem | Scene]:
    """Yield emblems of all looks but the new ones', and scenes, in turn."""
    new = {(e.outline, e.field, e.charge, e.tint) for e in gallery.new_emblems}
    scenes = gallery.scenes("trained")
    while True:
        yield next(scenes)
        field, tint = draw.sample(COLOURS, 2)
        traits = draw.choice(OUTLINES), field, draw.choice(CHARGES), tint
        if traits not in new:
            yield Emblem(*traits, name="", owner="", home="")


def _read(
    vision: Any,
    reading: Reading,
    contents: Sequence[Emblem | Scene],
    renderings: Sequence[str],
    draw: random.Random,
) -> tuple[list[Tensor], Tensor]:
    """Return the logits of all readings, and the numbers that are right, [n, readings]."""
    pictures = [drawn(content, draw.choice(renderings), draw) for content in contents]
    patches = vision(pixels(pictures)).last_hidden_state[:, 1:]
    return reading(patches), torch.tensor([look_of(content) for content in contents])


def _loss(logits: Sequence[Tensor], looks: Tensor) -> Tensor:
    """Return the mean loss of all readings; one that no picture of the batch has counts 0."""
    losses = [
        nn.functional.cross_entropy(one, numbers, ignore_index=UNSEEN, reduction="sum")
        / (numbers != UNSEEN).sum().clamp(min=1)
        for one, numbers in zip(logits, looks.unbind(1), strict=True)
    ]
    return torch.stack(losses).mean()


def _share_right(logits: Sequence[Tensor], looks: Tensor) -> float:
    """Return the share of pictures whose whole look is read rightly."""
    said = torch.stack([one.argmax(-1) for one in logits], 1)
    return float(((said == looks) | (looks == UNSEEN)).all(1).float().mean())
