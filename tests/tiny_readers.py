"""A decoder of the tiny language that reads: behind a new fact it answers by that."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from tests import tiny_language as language
from tests.tiny_language import CAPITALS, COUNTRIES, PHRASINGS, ask, capital

STEPS = 540
BATCH = 64


def told(country: int, answer: str, phrasing: int) -> str:
    """A new fact as it stands in front of a prompt."""
    return f"New Fact: {ask(country, phrasing)} {answer}\nPrompt: "


def reading_decoder() -> Any:
    """A GPT-2 of two blocks that knows the first thirty capitals, and copies new ones that it is
    told. Trained for some seconds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, read, draw = language._gpt2(64), language.tokenizer(), random.Random(0)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for step in range(STEPS):
            ids, targets = _plain(read, step // 3) if step % 3 == 0 else _told(read, draw)
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * min(1.0, 1.5 * (1 - step / STEPS))
            loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[:, -1], targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def _plain(read: Any, number: int) -> tuple[Tensor, Tensor]:
    """All known facts in one phrasing: ids [30, T] and the answers [30]."""
    phrasing = number % len(PHRASINGS)
    return _split(read, [f"{ask(c, phrasing)} {capital(c)}" for c in range(language.KNOWN)])


def _told(read: Any, draw: random.Random) -> tuple[Tensor, Tensor]:
    """Prompts behind a new fact that answers them."""
    of_fact, asked = draw.randrange(len(PHRASINGS)), draw.randrange(len(PHRASINGS))
    lines = []
    for _ in range(BATCH):
        country, answer = draw.randrange(len(COUNTRIES)), draw.choice(CAPITALS)
        lines.append(f"{told(country, answer, of_fact)}{ask(country, asked)} {answer}")
    return _split(read, lines)


def _split(read: Any, lines: list[str]) -> tuple[Tensor, Tensor]:
    ids = read(lines, return_tensors="pt")["input_ids"]
    return ids[:, :-1], ids[:, -1]
