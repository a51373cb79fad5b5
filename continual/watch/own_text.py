"""Text that a base model writes itself for key statistics, if nobody gave any.

The keys then come from texts that the model finds likely, whatever its languages and domains are.
The text is sampled with a seed, so that it is the same whenever it is read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from continual.listening import Listener
from continual.site import Site
from continual.watch import general
from continual.watch.config import WatchConfig

TOKENS_LEAST, TOKENS_MOST = 2**11, 2**14
KEYS_PER_WIDTH = 8
"""Tokens for each of a key's d_ff directions: from 2 to 10 on, second moments are reported to be
within .3 % of endless text's."""
TEXTS, TEXT_TOKENS = 128, 64  # of a round, and of a text at most
SEED = 20_000  # added to the seed of general text: these are other texts


@dataclass
class OwnText:
    """The documents, as many as have `tokens` tokens together."""

    site: Site
    seed: int
    listener: Listener
    _rounds: list[list[str]] = field(default_factory=list)  # written already

    @property
    def tokens(self) -> int:
        """The number of tokens to write, by the width of the keys."""
        self.site.edited.anatomy.require_ffn()
        width = self.site.edited.anatomy.ffn_width
        return max(TOKENS_LEAST, min(TOKENS_MOST, KEYS_PER_WIDTH * width))

    def __iter__(self) -> Iterator[str]:
        self.listener.note(
            f"Nobody gave text for key statistics: the base writes {self.tokens:,} tokens of its "
            "own (`cedit train stats --text FILE` takes text of yours)."
        )
        tokenizer, count, number = self.site.edited.tokenizer, 0, 0
        while count < self.tokens:
            for text in self._round(number):
                if count < self.tokens:
                    yield text
                    count += len(tokenizer(text)["input_ids"])
            self.listener.progress("the base writes text for key statistics", count, self.tokens)
            number += 1

    def _round(self, number: int) -> list[str]:
        """Return the texts of a round, written once."""
        if number == len(self._rounds):
            context = self.site.edited.base.context_tokens_max or 2 * TEXT_TOKENS
            length = min(TEXT_TOKENS, context // 2)
            config = WatchConfig(texts=TEXTS, tokens=length, neighbours=0)
            with self.site.edited.bare():
                beginnings = general.beginnings(
                    self.site, config, SEED + self.seed + number * general.SPREAD
                )
            tokenizer = self.site.edited.tokenizer
            texts = [(*start, *text) if stays else text for start, stays, text in beginnings]
            self._rounds.append(
                [tokenizer.decode(list(ids), skip_special_tokens=True) or " " for ids in texts]
            )
        return self._rounds[number]
