"""The causal task: a decoder continues the prompt.

The answer is right if greedy decoding yields exactly its tokens. One teacher-forced pass decides
that: greedy decoding yields the target if and only if the target token is the arg-max at every one
of its positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from continual import decoding
from continual.base import WrongBaseModel
from continual.prompts import Chat, Prompt
from continual.requests import Limits
from continual.tasks import Encoding, PromptText, Question
from continual.tasks.chat import ChatTemplate, ChatTurn
from continual.tasks.joining import AUTO, blank_between, blank_setting
from continual.tasks.tokens import PromptReader, padded

if TYPE_CHECKING:
    from continual.base import PretrainedBase


ANCHORS = ("\n", ":", "0", ".", "a", "(", ";")
"""Texts to stand before an answer while it is tokenised apart from its prompt: some tokenizers put
a blank of their own before a text that begins a sequence."""


class CausalTask:
    """The task of a decoder. A probe is a plain prompt, a blank where one belongs, the answer, and
    the terminator if the store sets one; or a chat, the answer, and the mark that ends the turn."""

    name: ClassVar[str] = "causal"
    architecture: ClassVar[str] = "AutoModelForCausalLM"

    def __init__(self, reader: PromptReader, terminator: str = "", blank: str = AUTO) -> None:
        self._reader, self._tokenizer = reader, reader.tokenizer
        self.limits = reader.limits
        self._terminator, self._blank = terminator, blank
        self._template = ChatTemplate(reader.tokenizer)

    @classmethod
    def of(cls, base: PretrainedBase, settings: Mapping[str, Any], limits: Limits) -> CausalTask:
        """See `Task.of`; `terminator` is a text that ends every answer to a plain prompt, `joining`
        and `blank` are as in `joining`, `template` is the digest of the chat template. Raises
        WrongBaseModel if the tokenizer has another template."""
        reader = cls._reader_of(base, settings, limits)
        terminator = str(settings.get("terminator", ""))
        task = cls(reader, terminator, blank_setting(settings))
        digest = settings.get("template")
        if digest is not None and digest != task._template.digest:
            raise WrongBaseModel(
                "The model's chat template is not the one that this store was made with ([task] "
                f"template = {digest}): put that one back, or make a new store."
            )
        return task

    @classmethod
    def _reader_of(
        cls, base: PretrainedBase, settings: Mapping[str, Any], limits: Limits
    ) -> PromptReader:
        return PromptReader.of(base, settings, limits)

    def settings(self) -> dict[str, Any]:
        """See `Task.settings`: the digest of the chat template, if there is one."""
        digest = self._template.digest
        return {} if digest is None else {"template": digest}

    def encode(self, prompt: Prompt, answer: str) -> Encoding:
        """Encode a probe; see `Task.encode`."""
        turn = self._turn(prompt)
        wording = self._asked(prompt, turn)
        question = self._ids(wording)
        literal = self._reader.literal(answer)
        targets = self._answer_ids(wording, question, self._tail(wording, turn, literal))
        self._reader.require_answer(answer, targets)
        self._reader.require_context(wording.text, len(question) + len(targets) - 1)
        start = len(question) - 1
        positions = tuple(range(start, start + len(targets)))
        return Encoding(Question(question), positions, targets)

    def question(self, prompt: Prompt) -> Question:
        """Encode a prompt; see `Task.question`."""
        return Question(self._ids(self.asked(prompt)))

    def asked(self, prompt: Prompt) -> PromptText:
        """Return a prompt as text; see `Task.asked`."""
        return self._asked(prompt, self._turn(prompt))

    def tokens(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text; see `Task.tokens`."""
        return self._reader.ids(text, ends=not self._reader.is_in_place)

    def readable(self, ids: Sequence[int]) -> str:
        """Return the text of tokens to the letter, marks of turns included; see `Task.readable`."""
        return self._reader.letters(ids) if self._reader.is_in_place else self._reader.words(ids)

    def opening(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the tokens of a prompt of any length that leaves the model room for an answer.
        Raises RequestError as `question` does, but for the store's own limits."""
        asked, ends = self.asked(prompt), not self._reader.is_in_place
        return self._reader.opening(asked.text, is_whole=asked.is_whole, ends=ends)

    def ends(self, model: Any) -> frozenset[int]:
        """Return the tokens that end an answer: the model's own, the tokenizer's, and the end of a
        turn."""
        eos = self._ends(model).get("eos_token_id", model.generation_config.eos_token_id)
        tokens = eos if isinstance(eos, list) else [eos]
        return frozenset(t for t in (*tokens, self._tokenizer.eos_token_id) if t is not None)

    @property
    def terminator(self) -> str:
        """The text that ends every answer to a plain prompt; empty for none."""
        return self._terminator

    def inputs(self, batch: Sequence[Encoding]) -> dict[str, Tensor]:
        """Return input_ids and attention_mask [B, T]; see `Task.inputs`."""
        return padded([encoding.ids for encoding in batch], self._reader.pad)

    def answer(self, model: Any, question: Question, tokens_max: int) -> tuple[int, ...]:
        """Return the model's greedy continuation, whatever its directory asks `generate` for: the
        ledger judges exactly this."""
        ids = torch.tensor([question.ids], device=model.device)
        context = self._reader.context_tokens_max
        room = tokens_max if context is None else min(tokens_max, context - len(question.ids))
        ends = self._ends(model)
        with decoding.plainly(model):
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max(1, room),
                do_sample=False,
                pad_token_id=self._reader.pad,
                **ends,
                **self._reader.base.decoding,
            )
        return tuple(output[0, len(question.ids) :].tolist())

    def text(self, answer: Sequence[int]) -> str:
        """Return the words up to the terminator, or up to the end of the turn."""
        ids = list(answer)
        if self._end_token is not None and self._end_token in ids:
            ids = ids[: ids.index(self._end_token)]
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text.split(self._terminator)[0].strip() if self._terminator else text.strip()

    # -- prompts

    def _turn(self, prompt: Prompt) -> ChatTurn | None:
        """Return the turn that answers a chat, or a text that the chat template made; None for
        plain text."""
        if isinstance(prompt, Chat):
            return self._template.turn(prompt)
        return self._template.turn_of_text(prompt) if self._reader.is_in_place else None

    def _asked(self, prompt: Prompt, turn: ChatTurn | None) -> PromptText:
        if turn is not None:
            return PromptText(turn.prompt, is_whole=True)
        return PromptText(self._reader.text(prompt), is_whole=False)

    def _ids(self, asked: PromptText) -> tuple[int, ...]:
        ends = not self._reader.is_in_place
        return self._reader.prompt(asked.text, is_whole=asked.is_whole, ends=ends)

    # -- answers

    def _tail(self, asked: PromptText, turn: ChatTurn | None, answer: str) -> str:
        """Return the text behind a prompt: its answer, with the text that belongs to it on both
        sides."""
        if turn is not None:
            lead = "" if answer[:1].isspace() else turn.lead
            return lead + answer + ("" if answer.endswith(turn.end) else turn.end)
        return self._blank_between(asked.text, answer) + answer + self._terminator

    def _blank_between(self, prompt: str, answer: str) -> str:
        if not self._reader.is_in_place:
            return "" if prompt[-1].isspace() else " "
        if prompt.endswith(self._template.special_texts):
            return ""
        return blank_between(prompt, answer, self._blank)

    def _answer_ids(
        self, asked: PromptText, question: tuple[int, ...], tail: str
    ) -> tuple[int, ...]:
        """Return the answer's tokens behind the prompt: tokenised together if the prompt's own
        tokens stay the same, else apart."""
        ends = not self._reader.is_in_place
        joint_ids = self._reader.ids(asked.text + tail, is_whole=asked.is_whole, ends=ends)
        if joint_ids[: len(question)] == question:
            return joint_ids[len(question) :]
        tail_ids = self._reader.ids(tail, is_whole=True)
        return self._anchored(tail, tail_ids) if self._reader.is_in_place else tail_ids

    def _anchored(self, tail: str, alone: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tokens of a text in the middle of another: behind the first anchor that keeps
        its own tokens there; `alone` if none does."""
        for anchor in ANCHORS:
            anchor_ids = self._reader.ids(anchor, is_whole=True)
            joint_ids = self._reader.ids(anchor + tail, is_whole=True)
            if joint_ids[: len(anchor_ids)] == anchor_ids:
                return joint_ids[len(anchor_ids) :]
        return alone

    # -- ends of answers

    @cached_property
    def _end_token(self) -> int | None:
        """The special token that ends a turn; None if there is none."""
        end = self._template.turn_end
        if not self._reader.is_in_place or not end.endswith(self._template.special_texts):
            return None
        return self._reader.ids(end, is_whole=True)[-1]

    def _ends(self, model: Any) -> dict[str, Any]:
        """Return an option with the tokens at which `generate` stops, if the model's own lack the
        end of a turn."""
        eos = model.generation_config.eos_token_id
        eos_ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
        if self._end_token is None or self._end_token in eos_ids:
            return {}
        return {"eos_token_id": [*eos_ids, self._end_token]}
