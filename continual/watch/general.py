"""General text of a base model: what it says about anything, which no edit may change.

The base writes it by itself, sampled with a seed, so that the text is of the languages and domains
that the model knows; a user may give files of text instead. Every other text is memory, the others
are held out. All of it stands in the journal, so that a history is whole without the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

import torch

from continual.errors import CeditError, RequestError
from continual.prompts import Chat
from continual.site import LOGITS_MAX, Rows, Site
from continual.statistics.texts import TextFiles
from continual.watch.config import WatchConfig
from continual.watch.passages import UNSAID, Passage
from continual.watch.writing import continued, text_ends

CHAT_SHARE = 4
"""One text in so many begins as a user's turn, where the tokenizer has a chat template."""
DOCUMENT_CHARACTERS_MAX = 4096  # of a given text: a passage is taken from its beginning
WRITTEN_TOGETHER = 32  # texts
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
        """The content of a revision's body."""
        return {"source": self.source, "passages": [p.to_json() for p in self.passages]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read it back."""
        passages = tuple(Passage.from_json(passage) for passage in record["passages"])
        return cls(passages, str(record["source"]))


NONE = GeneralText((), "none")


def _ignore(_done: int, _total: int) -> None:
    """Progress, unseen."""


def write(
    site: Site, config: WatchConfig, seed: int, on_progress: Callable[[int, int], None] = _ignore
) -> GeneralText:
    """Let the base write its general text; `on_progress` is told the texts written and their
    number. A model that does not continue text has none."""
    if not config.texts or site.task.name != "causal":
        return NONE
    with site.edited.bare():
        starts = list(_starts(site, config.texts))
        texts: list[tuple[int, ...]] = []
        for first in range(0, len(starts), WRITTEN_TOGETHER):
            part = [ids for ids, _ in starts[first : first + WRITTEN_TOGETHER]]
            texts += continued(site.edited, part, config.tokens, seed=seed + first)
            on_progress(len(texts), len(starts))
        return GeneralText(_passages(site, starts, texts), "base")


def take(site: Site, files: TextFiles, config: WatchConfig) -> GeneralText:
    """Take general text from files. Raises CeditError for files without text."""
    if site.task.name != "causal":
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
    with site.edited.bare():
        passages = _passages(site, [((), False)] * len(texts), texts)
    return GeneralText(passages, ", ".join(path.name for path in files.paths))


def _starts(site: Site, count: int) -> Iterable[tuple[tuple[int, ...], bool]]:
    """Tokens before each text, and whether a user's prompt would have them, too."""
    tokenizer = site.edited.tokenizer
    turn = _user_turn(site)
    opening = tuple(tokenizer("")["input_ids"])
    bare = [token for token in opening if token not in text_ends(site.edited)]
    named = tokenizer.bos_token_id, tokenizer.eos_token_id
    document = tuple(bare) or tuple(token for token in named if token is not None)[:1]
    for number in range(count):
        if turn is not None and number // 2 % CHAT_SHARE == CHAT_SHARE - 1:
            yield turn, True
        elif document:
            yield document, bool(bare)
        else:
            yield (_ordinary(site, number),), True


def _user_turn(site: Site) -> tuple[int, ...] | None:
    """The tokens before a user's words; None for a tokenizer without a usable chat template."""
    try:
        text = site.task.asked(Chat.asking(_WORD)).text
    except RequestError:
        return None
    before = text[: text.rfind(_WORD)] if text.count(_WORD) == 1 else ""
    return tuple(site.edited.tokenizer(before, add_special_tokens=False)["input_ids"]) or None


def _ordinary(site: Site, number: int) -> int:
    """A token to begin with, where a tokenizer names none."""
    special = set(site.edited.tokenizer.all_special_ids)
    tokens = [i for i in range(site.choices) if i not in special]
    return tokens[number * 7919 % len(tokens)]


def _passages(
    site: Site,
    starts: Sequence[tuple[tuple[int, ...], bool]],
    texts: Sequence[tuple[int, ...]],
) -> tuple[Passage, ...]:
    """Texts with the base's next token at each of their positions. A start that no prompt has is
    left away: a text then begins as a prompt does."""
    whole: list[tuple[tuple[int, ...], int]] = []
    for (start, stays), text in zip(starts, texts, strict=True):
        ids = (*start, *text) if stays else text
        whole.append((ids, max(0, len(start) - 1) if stays else 0))
    blank = [Passage(ids, first, (0,) * (len(ids) - first)) for ids, first in whole if len(ids) > 1]
    rows = site.rows_in_passes([passage.encoding() for passage in blank])
    return expected(site, blank, rows)


@torch.no_grad()
def expected(site: Site, blank: Sequence[Passage], rows: Rows) -> tuple[Passage, ...]:
    """Passages with the token that the model says at each of their positions, from their rows."""
    size = max(1, LOGITS_MAX // site.choices)
    hidden = site.patched(rows)
    said: list[int] = []
    for first in range(0, len(hidden), size):
        logits = site.logits(hidden[first : first + size])
        leading = logits.argmax(-1)
        close = site.verdict(hidden[first : first + size], leading).close
        said += torch.where(close, UNSAID, leading).tolist()
    tokens = iter(said)
    return tuple(Passage(p.ids, p.first, tuple(islice(tokens, p.rows))) for p in blank)
