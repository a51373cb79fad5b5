"""Key statistics from text that the base model writes itself, by sampling.

No corpus is needed, and the keys are of texts that the model finds likely. The texts are kept in a
file named by the fingerprint of the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import tables
from benchmarks.real_model.asking import Outside
from continual.statistics import StatisticsError

TOKENS = 20_000  # in all
TEXT_TOKENS = 64  # at most
ROWS = 32


def collect(outside: Outside, folder: Path, blocks: Sequence[int]) -> None:
    """Collect statistics of these blocks in the session's store, unless they are there."""
    statistics = outside.session.statistics
    try:
        for block in blocks:
            statistics.get(block)
    except StatisticsError:
        for _ in statistics.collect(texts(outside, folder), blocks):
            pass


def texts(outside: Outside, folder: Path, tokens: int = TOKENS) -> list[str]:
    """Return texts of `tokens` tokens together, written once."""
    base = outside.session.edited.base.fingerprint
    file = folder / f"real-model-{base[:16]}" / f"own-text-{tokens}.json"
    if not file.exists():
        tables.write_whole(file, write(outside, tokens))
    texts: list[str] = json.loads(file.read_text(encoding="utf-8"))
    return texts


@torch.no_grad()
def write(outside: Outside, tokens: int, seed: int = 0) -> list[str]:
    """Sample texts of equal length, behind the token that begins or pads one."""
    session = outside.session
    tokenizer, device = session.tokenizer, session.edited.device
    first = tokenizer.bos_token_id
    first = session.edited.base.pad if first is None else first
    ids = torch.full((ROWS, 1), first, device=device)
    context = session.edited.base.context_tokens_max or TEXT_TOKENS + 1
    length = min(TEXT_TOKENS, context - 1)
    written: list[str] = []
    with session.edited.bare(), torch.random.fork_rng():
        torch.manual_seed(seed)
        while len(written) * length < tokens:
            sampled = session.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=length,
                do_sample=True,
                top_k=0,
                pad_token_id=session.edited.base.pad,
            )
            written += tokenizer.batch_decode(sampled[:, 1:], skip_special_tokens=True)
            tables.note(f"{len(written)} texts written")
    return [text for text in written if text.strip()]
