"""The seq2seq task: an encoder reads the prompt, and a decoder writes the answer, up to its end.

The answer is right if greedy decoding yields exactly its tokens, the end of sequence included; one
teacher-forced pass of the decoder decides that. Edits are made in the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from continual.errors import ModelError
from continual.prompts import Prompt
from continual.requests import Limits
from continual.tasks import Encoding, PromptText, Question
from continual.tasks.tokens import PromptReader, padded

if TYPE_CHECKING:
    from continual.base import PretrainedBase


class Seq2SeqTask:
    """The task of an encoder-decoder: the encoder reads the prompt; the decoder starts with its own
    token, and ends with the end of sequence."""

    name: ClassVar[str] = "seq2seq"
    architecture: ClassVar[str] = "AutoModelForSeq2SeqLM"

    def __init__(self, reader: PromptReader, start: tuple[int, ...], end: int) -> None:
        """Take the tokens `start` that the decoder reads before an answer, and the token `end` that
        ends it."""
        self._reader, self._tokenizer = reader, reader.tokenizer
        self.limits = reader.limits
        self._start, self._end = start, end

    @classmethod
    def of(cls, base: PretrainedBase, settings: Mapping[str, Any], limits: Limits) -> Seq2SeqTask:
        """See `Task.of`. Raises ModelError for a model without an encoder, and for one that does
        not name the first or the last token of answers."""
        if base.anatomy.encoder is None:
            raise ModelError(
                f"{type(base.model).__name__} has no encoder and no decoder, as seq2seq needs: use "
                "--task causal, or a model such as BART or T5."
            )
        start_token, end = _decoder_start(base.model), base.tokenizer.eos_token_id
        if start_token is None or end is None:
            setting = "decoder_start_token_id" if start_token is None else "eos_token_id"
            where = "config.json" if start_token is None else "tokenizer"
            raise ModelError(
                f"{type(base.model).__name__} cannot be asked: its {where} names no {setting}, "
                "which a seq2seq model needs; set it and save the model again."
            )
        second_token = getattr(base.model.generation_config, "forced_bos_token_id", None)
        start = (start_token,) if second_token is None else (start_token, int(second_token))
        return cls(PromptReader.of(base, settings, limits), start, int(end))

    def settings(self) -> dict[str, Any]:
        """See `Task.settings`: none."""
        return {}

    def encode(self, prompt: Prompt, answer: str) -> Encoding:
        """Encode a probe; see `Task.encode`."""
        question = self.question(prompt)
        targets = self._answer_ids(self._reader.literal(answer))
        self._reader.require_answer(answer, targets[:-1])
        self._reader.require_context(self._reader.text(prompt), len(self._start) + len(targets) - 1)
        start = len(self._start) - 1
        return Encoding(question, tuple(range(start, start + len(targets))), targets)

    def question(self, prompt: Prompt) -> Question:
        """Encode a prompt; see `Task.question`."""
        return Question(self._start, self._reader.prompt(self._reader.text(prompt)))

    def asked(self, prompt: Prompt) -> PromptText:
        """Return a prompt as text; see `Task.asked`."""
        return PromptText(self._reader.text(prompt), is_whole=False)

    def tokens(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text; see `Task.tokens`."""
        return self._reader.ids(text)

    def readable(self, ids: Sequence[int]) -> str:
        """Return the text of tokens; see `Task.readable`."""
        return self._reader.words(ids)

    def inputs(self, batch: Sequence[Encoding]) -> dict[str, Tensor]:
        """Return input_ids and attention_mask [B, S] for the encoder, decoder_input_ids [B, T]; see
        `Task.inputs`."""
        source = padded([encoding.question.source for encoding in batch], self._reader.pad)
        ids = padded([encoding.ids for encoding in batch], self._reader.pad)
        return {**source, "decoder_input_ids": ids["input_ids"]}

    @torch.no_grad()
    def answer(self, model: Any, question: Question, tokens_max: int) -> tuple[int, ...]:
        """Return the result of plain greedy decoding, whatever search or penalties the model's
        directory asks `generate` for: the ledger judges exactly this."""
        room = self._reader.context_tokens_max
        encoding = Encoding(question, (), ())
        tokens: tuple[int, ...] = ()
        for _ in range(tokens_max):
            if room is not None and len(encoding.ids) > room:
                break
            inputs = {name: t.to(model.device) for name, t in self.inputs([encoding]).items()}
            token = int(model(**inputs, use_cache=False).logits[0, -1].argmax())
            if token == self._end:
                break
            tokens = (*tokens, token)
            encoding = replace(encoding, question=replace(question, ids=question.ids + tokens))
        return tokens

    def text(self, answer: Sequence[int]) -> str:
        """Return the words, without special tokens."""
        text: str = self._tokenizer.decode(list(answer), skip_special_tokens=True)
        return text.strip()

    def _answer_ids(self, answer: str) -> tuple[int, ...]:
        """Return the answer's tokens in the form that the decoder is trained on, with one end."""
        ids = tuple(self._tokenizer(text_target=answer)["input_ids"])
        if len(self._start) > 1 and ids[:1] == self._start[1:]:
            ids = ids[1:]
        return ids if ids[-1:] == (self._end,) else (*ids, self._end)


def _decoder_start(model: Any) -> int | None:
    """Return the token that a decoder starts with, by its config or its generation settings; None
    if neither names one."""
    for settings in (model.config, model.config.get_text_config(decoder=True)):
        if (token := getattr(settings, "decoder_start_token_id", None)) is not None:
            return int(token)
    token = getattr(model.generation_config, "decoder_start_token_id", None)
    return None if token is None else int(token)
