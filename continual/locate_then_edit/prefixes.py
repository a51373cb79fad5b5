"""Foreign words to stand in front of a prompt, the same for all edits of a history.

Copies of a prompt behind foreign words ask the same in another place of a text: they show an editor
the directions in which a query moves with the wording alone. Finds the words; leaves reading the
copies to each editor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from continual.choices import DECODERS
from continual.locate_then_edit.contexts import write_contexts
from continual.picture_marks import put_before, spelled
from continual.prompts import Chat, Message, Prompt
from continual.proposals import EditContext
from continual.site import Site

PREFIXES = 128  # in a pool
SHORT, SENTENCES = (1, 5), (6, 20)
"""The fewest and the most tokens of a prefix."""
WRITTEN_TOKENS = (1, 2, 3)  # between a generic word and a full stop

SEED_DIGITS = 15  # of a request's id
LengthRange = tuple[int, int]


class Prefixes:
    """Foreign words by the store's seed: the same for all edits of a history, made on demand."""

    def __init__(self) -> None:
        self._pools: dict[tuple[str, int, LengthRange], tuple[str, ...]] = {}

    def draw(self, count: int, context: EditContext, lengths: LengthRange = SHORT) -> list[str]:
        """Draw `count` prefixes from the pool of these lengths, none twice."""
        pool = self._pool(context, lengths)
        order = torch.randperm(len(pool), generator=context.generator)[:count]
        return [pool[place] for place in order.tolist()]

    def draw_for(self, identity: str, count: int, context: EditContext) -> list[str]:
        """Draw `count` whole sentences for a request, by its id: a retry draws the same ones."""
        seed = int(identity[:SEED_DIGITS], 16) ^ context.seed
        generator = torch.Generator().manual_seed(seed)
        return self.draw(count, replace(context, generator=generator), SENTENCES)

    def _pool(self, context: EditContext, lengths: LengthRange) -> tuple[str, ...]:
        key = (context.site.edited.base.fingerprint, context.seed, lengths)
        if key not in self._pools:
            generator = torch.Generator().manual_seed(context.seed)
            self._pools[key] = _make_pool(context, generator, lengths)
        return self._pools[key]


def _make_pool(
    context: EditContext, generator: torch.Generator, lengths: LengthRange
) -> tuple[str, ...]:
    """Make distinct prefixes. They are cut out of the general text; without one, a decoder writes
    them in its base state, and for other models they are cut out of the training probes' inputs or
    drawn from the vocabulary."""
    site, known_answers = context.site, context.known_answers()
    if known_answers.general:
        cut = _cut_out(known_answers.general, site, generator, lengths)
        texts = [f"{text.rstrip()}. " for text in cut]
    elif site.task.name in DECODERS:
        with site.edited.bare():
            texts = _written(site, generator)
    else:
        inputs = [e.question.source or e.question.ids for e in known_answers.training]
        texts = _cut_out(inputs, site, generator, SHORT) if inputs else _drawn(site, generator)
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


def _written(site: Site, generator: torch.Generator) -> list[str]:
    each = PREFIXES // len(WRITTEN_TOKENS)
    pools = [write_contexts(site, each, tokens, generator) for tokens in WRITTEN_TOKENS]
    return [text for pool in pools for text in pool]


def _cut_out(
    inputs: Sequence[Sequence[int]], site: Site, generator: torch.Generator, lengths: LengthRange
) -> list[str]:
    """Cut PREFIXES runs of consecutive tokens out of inputs."""
    least, most = lengths
    texts = []
    for _ in range(PREFIXES):
        ids = _ordinary(inputs[_below(len(inputs), generator)], site)
        size = least + _below(most - least + 1, generator)
        start = _below(max(1, len(ids) - size + 1), generator)
        texts.append(_text(ids[start : start + size], site))
    return texts


def _drawn(site: Site, generator: torch.Generator) -> list[str]:
    """Draw PREFIXES runs of tokens from the model's vocabulary."""
    ids = _ordinary(range(len(site.edited.model.get_input_embeddings().weight)), site)
    sizes = [1 + _below(SHORT[1], generator) for _ in range(PREFIXES)]
    return [_text([ids[_below(len(ids), generator)] for _ in range(s)], site) for s in sizes]


def _ordinary(ids: Iterable[int], site: Site) -> list[int]:
    special = set(site.edited.tokenizer.all_special_ids)
    return [token for token in ids if token not in special]


def _text(ids: Sequence[int], site: Site) -> str:
    """Return the words that tokens spell, with a space behind them."""
    text = spelled(
        site.edited.tokenizer, ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return f"{text.strip()} "


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (1,), generator=generator).item())


def behind(prefixes: Iterable[str], prompt: Prompt) -> list[Prompt]:
    """Return the prompt behind each of these prefixes; in a chat a prefix stands in the turn that
    asks."""
    if isinstance(prompt, str):
        return [put_before(prefix, prompt) for prefix in prefixes]
    *before, asking = prompt.messages
    contents = (put_before(prefix, asking.content) for prefix in prefixes)
    return [Chat((*before, Message(asking.role, content))) for content in contents]
