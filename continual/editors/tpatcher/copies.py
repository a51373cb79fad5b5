"""Copies of an edit's prompt behind a few foreign words: other queries that ask the same.

A prompt alone is one point, and a neuron that is told it from the memory may be told it from its
rephrases, too. Its copies show in which directions a query moves where only the wording does. They
stand beside the own rows while key and bias are made; values know nothing of them.

Knows where foreign words come from, how copies are made and which are kept: those that the model
answers as it answers the prompt. Leaves keys to `separating` and `training`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.associative.contexts import write_contexts
from continual.editors import Edit, Surroundings
from continual.editors.tpatcher.training import Slots
from continual.errors import RequestError
from continual.site import LOGITS_MAX, Rows, Site
from continual.tasks import Encoding

PREFIXES = 128  # in a pool
PREFIX_TOKENS_MAX = 5
WRITTEN_TOKENS = (1, 2, 3)  # behind a generic word, with a full stop behind them


class Prefixes:
    """Foreign words by the store's seed: the same for all edits of a history, made when needed."""

    def __init__(self) -> None:
        self._pools: dict[tuple[str, int], tuple[str, ...]] = {}

    def draw(self, count: int, around: Surroundings) -> list[str]:
        """Draw so many from the pool, none twice."""
        pool = self._pool(around)
        order = torch.randperm(len(pool), generator=around.generator)[:count]
        return [pool[place] for place in order.tolist()]

    def _pool(self, around: Surroundings) -> tuple[str, ...]:
        key = (around.site.edited.base.fingerprint, around.seed)
        if key not in self._pools:
            generator = torch.Generator().manual_seed(around.seed)
            self._pools[key] = _make_pool(around, generator)
        return self._pools[key]


def _make_pool(around: Surroundings, generator: torch.Generator) -> tuple[str, ...]:
    """Distinct prefixes: cut out of the general text that a decoder wrote, or written by it in its
    base state where there is none; for other models they are cut out of the training probes'
    inputs, or drawn from the vocabulary."""
    site, taught = around.site, around.taught()
    if taught.general:
        closed = (f"{text.rstrip()}. " for text in _cut_out(taught.general, site, generator))
        texts = list(closed)
    elif site.task.name == "causal":
        with site.edited.bare():
            texts = _written(site, generator)
    else:
        inputs = [e.question.source or e.question.ids for e in taught.training]
        texts = _cut_out(inputs, site, generator) if inputs else _drawn(site, generator)
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


def _written(site: Site, generator: torch.Generator) -> list[str]:
    each = PREFIXES // len(WRITTEN_TOKENS)
    pools = [write_contexts(site, each, tokens, generator) for tokens in WRITTEN_TOKENS]
    return [text for pool in pools for text in pool]


def _cut_out(inputs: Sequence[Sequence[int]], site: Site, generator: torch.Generator) -> list[str]:
    """Consecutive tokens of inputs."""
    texts = []
    for _ in range(PREFIXES):
        ids = _ordinary(inputs[_below(len(inputs), generator)], site)
        size = 1 + _below(PREFIX_TOKENS_MAX, generator)
        first = _below(max(1, len(ids) - size + 1), generator)
        texts.append(_text(ids[first : first + size], site))
    return texts


def _drawn(site: Site, generator: torch.Generator) -> list[str]:
    """Any tokens that the model knows."""
    ids = _ordinary(range(len(site.edited.model.get_input_embeddings().weight)), site)
    sizes = [1 + _below(PREFIX_TOKENS_MAX, generator) for _ in range(PREFIXES)]
    return [_text([ids[_below(len(ids), generator)] for _ in range(s)], site) for s in sizes]


def _ordinary(ids: Iterable[int], site: Site) -> list[int]:
    special = set(site.edited.tokenizer.all_special_ids)
    return [token for token in ids if token not in special]


def _text(ids: Sequence[int], site: Site) -> str:
    """The words that tokens spell, with a space behind them."""
    text: str = site.edited.tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return f"{text.strip()} "


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (1,), generator=generator).item())


# --- copies ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Originals:
    """The slots of a batch, each by the row of the prompt that its neuron is for."""

    edits: Sequence[Edit]
    owner: Sequence[int]  # the edit of each slot
    place: Sequence[int]  # of each slot, the answer position
    answers: Tensor  # [slots] the token that the model gives there


@torch.no_grad()
def copied(originals: Originals, prefixes: Prefixes, count: int, around: Surroundings) -> Slots:
    """The rows of `count` copies of each prompt that its slots may own, padded: at the slot's place
    the model, as it stands, answers them as it answers the prompt. One pass for each edit."""
    copies = {
        number: _Copies.of(originals.edits[number], prefixes.draw(count, around), around.site)
        for number in dict.fromkeys(originals.owner)
    }
    slots = zip(originals.owner, originals.place, originals.answers.tolist(), strict=True)
    alike = [copies[number].answered(place, token) for number, place, token in slots]
    return _padded(alike)


@dataclass(frozen=True)
class _Copies:
    """The rows of an edit's copies, and what the model answers there."""

    rows: Rows  # [copies · positions]; `hidden` with the neurons that are on
    answers: Tensor  # [copies · positions] tokens
    positions: int  # of an answer

    @classmethod
    def of(cls, edit: Edit, prefixes: Sequence[str], site: Site) -> _Copies:
        """Copies behind these prefixes; those that break a limit, or whose answer is tokenised
        otherwise, are left out."""
        prompt = edit.encodings[0]
        encodings = [e for prefix in prefixes if (e := _encoded(edit, prefix, site)) is not None]
        encodings = [e for e in encodings if e.targets == prompt.targets]
        if not encodings:
            none = edit.rows[0][:0]
            return cls(none, none.targets, len(prompt.targets))
        rows = site.rows(encodings)
        rows = Rows(rows.query, site.patched(rows), rows.targets, rows.texts)
        return cls(rows, answers_of(site, rows.hidden), len(prompt.targets))

    def answered(self, place: int, token: int) -> Rows:
        """The rows at one answer position, of the copies that are answered with this token."""
        at = slice(place, None, self.positions)
        return self.rows[at][self.answers[at] == token]


def _encoded(edit: Edit, prefix: str, site: Site) -> Encoding | None:
    """The prompt behind a prefix; None where a limit forbids it."""
    request = edit.request
    try:
        return site.task.encode(f"{prefix}{request.prompt}", request.target_new)
    except RequestError:
        return None


def answers_of(site: Site, hidden: Tensor) -> Tensor:
    """[n] the token with the highest logit, for residual sums [n, d]."""
    size = max(1, LOGITS_MAX // site.choices)
    return torch.cat([site.logits(part).argmax(-1) for part in hidden.split(size)])


def _padded(rows: Sequence[Rows]) -> Slots:
    """The rows of each slot, to one length."""
    widest = max(map(len, rows))
    real = torch.tensor([[i < len(own) for i in range(widest)] for own in rows], dtype=torch.bool)

    def stacked(tensors: Sequence[Tensor]) -> Tensor:
        padded = [torch.cat([t, t.new_zeros(widest - len(t), *t.shape[1:])]) for t in tensors]
        return torch.stack(padded)

    return Slots(
        stacked([own.query for own in rows]),
        stacked([own.hidden for own in rows]),
        stacked([own.targets for own in rows]),
        real.to(rows[0].query.device),
    )
