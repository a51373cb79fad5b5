"""General text of a base model: samples of its writing on any subject, which edits must not change.

The base writes it by itself, sampled with a seed, so that the text has the languages and domains
that the model knows; a user may give files of text instead. Every other text is memory, the others
are held out. All of it stands in the journal, so that a history is whole without the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from typing import Any, Self

import torch

from continual.choices import DECODERS
from continual.errors import CeditError, RequestError
from continual.prompts import Chat
from continual.site import LOGITS_MAX, Site
from continual.site.rows import Rows
from continual.statistics.texts import TextFiles
from continual.watch.config import WatchConfig
from continual.watch.passages import UNSAID, Passage
from continual.watch.writing import continued, text_ends

CHAT_SHARE = 4
"""One text in so many begins as a user's turn, if the tokenizer has a chat template."""
DOCUMENT_CHARACTERS_MAX = 4096  # of a given text: a passage is taken from its beginning
WRITTEN_TOGETHER = 32  # texts
TOKENS_MIN = 4  # of a text that the base wrote: a shorter one is begun in another way
SPREAD = 7919  # between the tokens of the vocabulary that texts begin with

TextStart = tuple[tuple[int, ...], bool]
"""Tokens before a text, and whether a prompt would have them, too."""
Beginning = tuple[tuple[int, ...], bool, tuple[int, ...]]
"""The same with the text."""
_WORD = "cedit"  # stands for a user's words


@dataclass(frozen=True)
class GeneralText:
    """Passages of general text: the even ones are memory, the odd ones are held out."""

    passages: tuple[Passage, ...]
    source: str  # "base", or the names of the files

    @property
    def memory(self) -> tuple[Passage, ...]:
        """The passages that editors stay silent on."""
        return self.passages[::2]

    @property
    def held_out(self) -> tuple[Passage, ...]:
        """The passages that are only measured."""
        return self.passages[1::2]

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a revision's body."""
        return {"source": self.source, "passages": [p.to_json() for p in self.passages]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read general text from its JSON form."""
        passages = tuple(Passage.from_json(passage) for passage in record["passages"])
        return cls(passages, str(record["source"]))


NONE = GeneralText((), "none")


@dataclass(frozen=True)
class ReadText:
    """General text as it was just read through the base; None for a half without passages."""

    text: GeneralText
    memory: Rows | None
    held_out: Rows | None


def _ignore(_done: int, _total: int) -> None:
    """Ignore progress."""


def write(
    site: Site, config: WatchConfig, seed: int, on_progress: Callable[[int, int], None] = _ignore
) -> ReadText:
    """Let the base write its general text; `on_progress` is told the texts written and their
    number. A model that does not continue text has none."""
    if not config.texts or site.task.name not in DECODERS:
        return ReadText(NONE, None, None)
    with site.edited.bare():
        texts = beginnings(site, config, seed, on_progress)
        return _read(site, texts, "base", config.certain_min)


def beginnings(
    site: Site, config: WatchConfig, seed: int, on_progress: Callable[[int, int], None] = _ignore
) -> list[Beginning]:
    """Let the model as it stands write texts, each behind its start."""
    drafts: dict[int, Beginning] = {}
    kinds = _kinds_of_start(site)
    for turn, kind in enumerate(kinds):
        length_min = 1 if kind is kinds[-1] else min(TOKENS_MIN, config.tokens)
        starts = {n: kind(n) for n in range(config.texts) if n not in drafts}
        for texts in _written(site, starts, config.tokens, seed + turn):
            drafts |= {n: text for n, text in texts.items() if len(text[-1]) >= length_min}
            on_progress(len(drafts), config.texts)
    return [drafts[number] for number in sorted(drafts)]


def _written(
    site: Site, starts: Mapping[int, TextStart], tokens: int, seed: int
) -> Iterator[dict[int, Beginning]]:
    """Write texts behind these starts, by their numbers; WRITTEN_TOGETHER texts make a group, which
    is sampled with its own seed."""
    numbers = list(starts)
    groups = [
        (seed + first, {n: starts[n] for n in numbers[first : first + WRITTEN_TOGETHER]})
        for first in range(0, len(numbers), WRITTEN_TOGETHER)
    ]
    return site.executor.map(partial(_sampled, site, tokens), groups)


def _sampled(
    site: Site, tokens: int, group: tuple[int, Mapping[int, TextStart]]
) -> dict[int, Beginning]:
    """Write the texts of one group: its seed, and its starts by their numbers."""
    seed, starts = group
    texts = continued(site.edited, [start[0] for start in starts.values()], tokens, seed=seed)
    return {n: (*starts[n], text) for n, text in zip(starts, texts, strict=True)}


def take(site: Site, files: TextFiles, config: WatchConfig) -> ReadText:
    """Take general text from files. Raises CeditError for files without text."""
    if site.task.name not in DECODERS:
        raise CeditError(f"General text is for causal models, and this one is {site.task.name}.")
    tokenizer, context = site.edited.tokenizer, site.edited.base.context_tokens_max
    length = min(2 * config.tokens, context or 2 * config.tokens)
    texts: list[tuple[int, ...]] = []
    for document in islice(files, config.texts):
        ids = tokenizer(document[:DOCUMENT_CHARACTERS_MAX])["input_ids"][:length]
        if len(ids) > 1:
            texts.append(tuple(ids))
    if not texts:
        raise CeditError(f"No text in {', '.join(map(str, files.paths))}: give files with text.")
    source = ", ".join(path.name for path in files.paths)
    with site.edited.bare():
        return _read(site, [((), False, text) for text in texts], source, config.certain_min)


def _kinds_of_start(site: Site) -> list[Callable[[int], TextStart]]:
    """Return the ways to begin a text by its number; a text that ends at once tries the next way.

    The first way is behind a token that begins a text, with every fourth pair as a user's turn if
    there is a chat template; then behind a token that ends a text; then with an ordinary token.
    """
    tokenizer = site.edited.tokenizer
    turn, ends = _user_turn(site), text_ends(site.edited)
    opening = tuple(token for token in tokenizer("")["input_ids"] if token not in ends)
    generation = getattr(site.edited.model, "generation_config", None)
    token_ids = (
        tokenizer.bos_token_id,
        getattr(generation, "bos_token_id", None),
        tokenizer.eos_token_id,
    )
    marks = list(dict.fromkeys(int(token) for token in token_ids if token is not None))

    def in_turn(number: int) -> TextStart:
        if turn is not None and number // 2 % CHAT_SHARE == CHAT_SHARE - 1:
            return turn, True
        return (opening, True) if opening else ((marks[0],), False)

    kinds: list[Callable[[int], TextStart]] = [in_turn] if opening or marks else []
    kinds += [partial(_behind_mark, mark) for mark in marks[1:]]
    return [*kinds, partial(_ordinary, site)]


def _behind_mark(mark: int, _number: int) -> TextStart:
    return (mark,), False


def _user_turn(site: Site) -> tuple[int, ...] | None:
    """Return the tokens before a user's words; None for a tokenizer without a usable chat
    template."""
    try:
        text = site.task.asked(Chat.asking(_WORD)).text
    except RequestError:
        return None
    lead = text[: text.rfind(_WORD)] if text.count(_WORD) == 1 else ""
    return tuple(site.edited.tokenizer(lead, add_special_tokens=False)["input_ids"]) or None


def _ordinary(site: Site, number: int) -> TextStart:
    """Return a token of the vocabulary as a start, another one for each text."""
    special_ids = set(site.edited.tokenizer.all_special_ids)
    count = len(site.edited.model.get_input_embeddings().weight)
    tokens = [i for i in range(min(count, len(site.edited.tokenizer))) if i not in special_ids]
    return (tokens[number * SPREAD % len(tokens)],), True


def _read(site: Site, texts: Sequence[Beginning], source: str, certain_min: float) -> ReadText:
    """Read texts with the base's next token at each of their positions; where they are held out,
    only at those where it is certain. A start that no prompt has is left out: the text then begins
    as a prompt does."""
    sequences = [
        ((*start, *text), max(0, len(start) - 1)) if stays else (text, 0)
        for start, stays, text in texts
    ]
    drafts = [
        Passage(ids, offset, (0,) * (len(ids) - offset))
        for ids, offset in sequences
        if len(ids) > 1
    ]
    minima = (0.0, certain_min)
    halves = [_read_half(site, drafts[half::2], minima[half]) for half in (0, 1)]
    passages = [p for pair in zip_longest(*(half for half, _ in halves)) for p in pair if p]
    return ReadText(GeneralText(tuple(passages), source), *(rows for _, rows in halves))


def _read_half(
    site: Site, blank: Sequence[Passage], certain_min: float
) -> tuple[tuple[Passage, ...], Rows | None]:
    if not blank:
        return (), None
    rows = site.rows_in_passes([passage.encoding() for passage in blank])
    return expected(site, blank, rows, certain_min), rows


@torch.no_grad()
def expected(
    site: Site, blank: Sequence[Passage], rows: Rows, certain_min: float = 0.0
) -> tuple[Passage, ...]:
    """Return the passages with the token that the model says at each of their positions, from their
    rows; without one where another is close, or where its probability is below `certain_min`. A
    model without rows tells no probabilities: there only close ones are left out."""
    if not site.has_rows:
        leading, close = site.leading_in_full([passage.encoding() for passage in blank])
        return _with_tokens(blank, torch.where(close, UNSAID, leading).tolist())
    size = max(1, LOGITS_MAX // site.choices)
    hidden = site.patched(rows)
    next_tokens: list[int] = []
    for start in range(0, len(hidden), size):
        logits = site.logits(hidden[start : start + size])
        leading = logits.argmax(-1)
        close = site.verdict(hidden[start : start + size], leading).close
        if certain_min:
            close = close | (logits.float().softmax(-1).amax(-1) < certain_min)
        next_tokens += torch.where(close, UNSAID, leading).tolist()
    return _with_tokens(blank, next_tokens)


def _with_tokens(blank: Sequence[Passage], next_tokens: Iterable[int]) -> tuple[Passage, ...]:
    """Return the passages with these tokens, one for each of their positions."""
    tokens = iter(next_tokens)
    return tuple(Passage(p.ids, p.first, tuple(islice(tokens, p.rows))) for p in blank)
