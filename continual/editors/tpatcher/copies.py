"""Copies of an edit's prompt behind a few foreign words: other queries that ask the same.

A prompt alone is one point: a neuron that separates it from the memory may separate it from its
rephrases, too. The copies show the directions in which a query moves with the wording alone. They
join the own rows while key and bias are made; values are trained without them. The wordings of
other requests of the same relation, with this subject, are used like copies.

Finds the foreign words, makes the copies and chooses among them: the copies that the model answers
like the prompt, or all of them. Leaves keys to `separating` and `training`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from continual.editors.tpatcher.grounds import Ground
from continual.editors.tpatcher.training import Slots
from continual.errors import RequestError
from continual.locate_then_edit.contexts import write_contexts
from continual.prompts import Chat, Message, Prompt
from continual.proposals import Edit, EditContext
from continual.site import Site
from continual.site.rows import Rows
from continual.tasks import Encoding

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
    elif site.task.name == "causal":
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
    text: str = site.edited.tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return f"{text.strip()} "


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (1,), generator=generator).item())


# --- copies ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Originals:
    """The slots of a batch, each by the prompt's row that its neuron is for."""

    edits: Sequence[Edit]
    owner: Sequence[int]  # the edit of each slot
    place: Sequence[int]  # of each slot, the answer position
    answers: Tensor  # [slots] the token that the model gives there


@torch.no_grad()
def copied(
    originals: Originals, prefixes: Prefixes, count: int, context: EditContext, ground: Ground
) -> Slots:
    """Return the rows of `count` copies of each prompt that its slots may own, padded: the model as
    it stands answers them, at the slot's place, like the prompt. Runs one pass for each edit."""
    copies = {
        number: _Copies.of(
            edit, _behind(prefixes.draw(count, context), edit.request.prompt), context.site, ground
        )
        for number in dict.fromkeys(originals.owner)
        for edit in (originals.edits[number],)
    }
    slots = zip(originals.owner, originals.place, originals.answers.tolist(), strict=True)
    alike = [copies[number].answered(place, token) for number, place, token in slots]
    return _padded(alike)


@torch.no_grad()
def worded(
    originals: Originals, prefixes: Prefixes, count: int, context: EditContext, ground: Ground
) -> Slots:
    """Return the rows of `count` copies of each prompt behind whole sentences, and of its other
    wordings, whatever the model answers there, padded. Runs one pass for each edit; a retry draws
    the same sentences."""
    copies = {}
    for number in dict.fromkeys(originals.owner):
        edit = originals.edits[number]
        seed = int(edit.id[:SEED_DIGITS], 16) ^ context.seed
        drawn = prefixes.draw(
            count, replace(context, generator=torch.Generator().manual_seed(seed)), SENTENCES
        )
        behind = _behind(drawn, edit.request.prompt)
        copies[number] = _Copies.of(edit, [*behind, *edit.wordings], context.site, ground)
    slots = zip(originals.owner, originals.place, strict=True)
    return _padded([copies[number].at(place) for number, place in slots])


def _behind(prefixes: Iterable[str], prompt: Prompt) -> list[Prompt]:
    """Return the prompt behind each of these prefixes; in a chat a prefix stands in the turn that
    asks."""
    if isinstance(prompt, str):
        return [f"{prefix}{prompt}" for prefix in prefixes]
    *before, asking = prompt.messages
    return [
        Chat((*before, Message(asking.role, f"{prefix}{asking.content}"))) for prefix in prefixes
    ]


@dataclass(frozen=True)
class _Copies:
    """The rows of an edit's copies, and the model's answers there."""

    rows: Rows  # [copies · positions]; `hidden` with the neurons that are on
    answers: Tensor  # [copies · positions] tokens
    positions: int  # of an answer

    @classmethod
    def of(cls, edit: Edit, prompts: Iterable[Prompt], site: Site, ground: Ground) -> _Copies:
        """Read copies with these prompts; a prompt is left out if it breaks a limit, or if its
        answer is tokenised otherwise."""
        prompt, target = edit.encodings[0], edit.request.target_new
        encodings = [e for p in prompts if (e := _encoded(p, target, site)) is not None]
        encodings = [e for e in encodings if e.targets == prompt.targets]
        if not encodings:
            none = edit.rows[0][:0]
            return cls(none, none.targets, len(prompt.targets))
        return cls(*ground.seen(encodings), len(prompt.targets))

    def at(self, place: int) -> Rows:
        """Return the rows at one answer position."""
        return self.rows[place :: self.positions]

    def answered(self, place: int, token: int) -> Rows:
        """Return the rows at one answer position of the copies that are answered with this
        token."""
        return self.at(place)[self.answers[place :: self.positions] == token]


def _encoded(prompt: Prompt, target: str, site: Site) -> Encoding | None:
    """Encode a prompt with its answer; None if a limit forbids it."""
    try:
        return site.task.encode(prompt, target)
    except RequestError:
        return None


def _padded(rows: Sequence[Rows]) -> Slots:
    """Pad the rows of each slot to one length."""
    widest = max(map(len, rows))
    real = torch.tensor(
        [[i < len(row_set) for i in range(widest)] for row_set in rows], dtype=torch.bool
    )

    def stacked(tensors: Sequence[Tensor]) -> Tensor:
        padded = [torch.cat([t, t.new_zeros(widest - len(t), *t.shape[1:])]) for t in tensors]
        return torch.stack(padded)

    return Slots(
        stacked([row_set.query for row_set in rows]),
        stacked([row_set.hidden for row_set in rows]),
        stacked([row_set.targets for row_set in rows]),
        real.to(rows[0].query.device),
    )
