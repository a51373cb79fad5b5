"""Answers as they are generated: transformers' `generate`, which asks here for every token.

`generate` runs the model as for `cedit ask`, with its patches, records and caches. A logits
processor chooses each row's token by the row's own settings, and a stopping criterion tells the
text of it and ends the row. Rows of one call have prompts of one length, so that none is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from continual import decoding
from continual.model import EditedModel
from continual.serving.asks import LENGTH, STOP, AnswerText, Ask, TokenChance
from continual.serving.sampling import TokenChooser
from continual.serving.texts import TextPieces, UpToStop

_NEVER = float("-inf")


def _unheard(_: AnswerRow) -> None:
    """Ignore the end of an answer."""


class AnswerRow:
    """One answer under way."""

    def __init__(self, ask: Ask, index: int, prompt: Sequence[int], model: Any, told: RowLimits):
        self.ask, self.index, self.prompt = ask, index, tuple(prompt)
        self.tokens: list[int] = []
        self.finish: str | None = None
        self.on_end: Callable[[AnswerRow], None] = _unheard
        self._limits = told
        self._chooser = TokenChooser(ask.sampling(model), index)
        self._pieces = TextPieces(told.tokenizer, prompt)
        self._stop = UpToStop((*ask.stops, *told.stops))
        self._text: list[str] = []
        self._chances: list[TokenChance] = []
        self._untold: list[TokenChance] = []

    def choose(self, ids: Tensor, logits: Tensor) -> int:
        """Return the next token, given all tokens [L] and the logits [v] of the model."""
        token = self._chooser.choose(ids, logits, self.tokens)
        if self.ask.chances is not None and token not in self._limits.ends:
            self._untold.append(self._chance(token, logits, self.ask.chances))
        return token

    def _chance(self, token: int, logits: Tensor, count: int) -> TokenChance:
        logprobs = logits.float().log_softmax(-1)
        values, tokens = logprobs.topk(min(count, len(logprobs)))
        likeliest = tuple(
            (self._word(other), value)
            for other, value in zip(tokens.tolist(), values.tolist(), strict=True)
        )
        return TokenChance(self._word(token), float(logprobs[token]), likeliest)

    def _word(self, token: int) -> str:
        word: str = self._limits.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return word

    def take(self, token: int) -> bool:
        """Add the token that was chosen; return True if the answer ends with it, or ended."""
        if self.finish is None:
            self._add(token)
            if self.finish is not None:
                self.on_end(self)
        return self.finish is not None

    def _add(self, token: int) -> None:
        self.tokens.append(token)
        if token in self._limits.ends:
            self._end(STOP)
            return
        self._tell(self._stop.take(self._pieces.take(token)))
        if self._stop.is_done or self.ask.cancelled.is_set():
            self.finish = STOP
        elif len(self.tokens) >= self._limits.tokens_max:
            self._end(LENGTH)

    def _end(self, reason: str) -> None:
        """End the answer with the text that was held back."""
        self._tell(self._stop.take(self._pieces.rest()))
        self.finish = STOP if self._stop.is_done else reason
        self._tell(self._stop.rest())

    def _tell(self, text: str) -> None:
        if not text and not self._untold:
            return
        self._text.append(text)
        chances, self._untold = self._untold, []
        self._chances += chances
        if text or chances:
            self.ask.hearer.piece(self.index, text, chances)

    def words(self) -> list[str]:
        """Return the text of each token."""
        return [self._word(token) for token in self.tokens]

    def prompt_words(self) -> list[str]:
        """Return the text of each token of the prompt."""
        return [self._word(token) for token in self.prompt]

    def closed(self) -> AnswerText:
        """Return the answer; one that had no room for more ends here."""
        if self.finish is None:
            self._end(LENGTH)
            self.on_end(self)
        text = "".join(self._text)
        assert self.finish is not None
        return AnswerText(text, self.finish, len(self.tokens), tuple(self._chances))


class RowLimits:
    """The ends of an answer: tokens, texts, and its length."""

    def __init__(
        self, tokenizer: Any, ends: frozenset[int], stops: Sequence[str], tokens_max: int
    ) -> None:
        self.tokenizer, self.ends, self.tokens_max = tokenizer, ends, tokens_max
        self.stops = tuple(stops)


class _Choices:
    """Chooses the next token of each row: its logit alone stays finite."""

    def __init__(self, rows: Sequence[AnswerRow]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores [B, v] of the chosen tokens."""
        chosen = torch.full_like(scores, _NEVER)
        for number, row in enumerate(self._rows):
            ended = row.finish is not None
            token = 0 if ended else row.choose(input_ids[number], scores[number])
            chosen[number, token] = 0.0
        return chosen


class _Ends:
    """Gives each row its token, and tells which rows have ended."""

    def __init__(self, rows: Sequence[AnswerRow]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Return [B] bool: True for rows that have ended."""
        tokens = input_ids[:, -1].tolist()
        ended = [row.take(token) for row, token in zip(self._rows, tokens, strict=True)]
        return torch.tensor(ended, device=input_ids.device)


@torch.no_grad()
def generate(edited: EditedModel, rows: Sequence[AnswerRow], tokens_max: int) -> None:
    """Answer rows with prompts of one length; each hears its pieces and ends by itself."""
    ids = torch.tensor([row.prompt for row in rows], device=edited.device)
    with decoding.plainly(edited.model):
        edited.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens_max,
            do_sample=False,
            pad_token_id=edited.base.pad,
            logits_processor=LogitsProcessorList([_Choices(rows)]),
            stopping_criteria=StoppingCriteriaList([_Ends(rows)]),
            **edited.base.decoding,
        )
